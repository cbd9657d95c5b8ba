"""How the lab runs its libraries: quietly, and on a fixed number of threads."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

import torch

__all__ = ["cpu_threads", "quiet_libraries"]


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """torch computes on `count` CPU threads; its own number is restored at the end.

    Sums are ordered by the number of threads, so a fixed number makes results independent of the
    number of cores. The lab's runs use one: for a model of a million parameters a second gains
    little, and costs a great deal where another process wants its core (each small operation
    waits for the slower thread; steps 4 to 9 times slower were measured).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Standard output goes to standard error; deprecation notes and progress bars are left out.

    transformers' and datasets' own settings are restored at the end.
    """
    import datasets
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    dataset_bars = not datasets.are_progress_bars_disabled()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()
