"""Doing a queue's runs over the cores: in this process tree, or in the background."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout

from offaxis.errors import InputError
from offaxis.lab.queue.grid import RunConfig
from offaxis.lab.queue.store import PATIENCE, State, Store, is_held

__all__ = ["cores", "is_running", "start", "stop", "wait", "work"]

_PRELOADED = [
    "offaxis.train.adapters",
    "offaxis.train.sparse",
    "offaxis.lab.queue.job",
    "offaxis.lab.teacher",
    "transformers.models.qwen3.modeling_qwen3",
    "offaxis.train.trainers",
    "trl.trainer.distillation_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.rloo_trainer",
    "trl.trainer.sft_trainer",
]
_POLL = 0.2
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Each run computes on one thread, so that as many runs as there are cores do not wait for each
other."""


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _attempt(directory: Path, config: RunConfig) -> None:
    """What a child process does: claim a run, do it, write down what went wrong."""
    from offaxis.lab.queue.job import execute

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    store = Store.open(directory)
    with store.claim(config) as ours:
        if not ours:
            return
        try:
            if config.needs_teacher:
                _provide_teacher(store)
            execute(store, config)
        except Exception:  # whatever a library raises: the other runs go on
            name = config.identity(store.base_digest)
            store.record_failure(name, f"{config}\n\n{traceback.format_exc()}")


def _provide_teacher(store: Store) -> None:
    """Make the stronger model unless it is there; others who need it wait."""
    from offaxis.lab.session import quiet_libraries
    from offaxis.lab.teacher import make_teacher

    with store.alone("teacher"):
        if not store.teacher.exists():
            staged = store.directory / "work" / "teacher"
            with quiet_libraries():
                make_teacher(store.base, staged)
            staged.rename(store.teacher)


def work(directory: Path, *, workers: int) -> State:
    """Do every pending run, `workers` at a time, each in a process of its own; blocks.

    Processes are forked from a server that has loaded the libraries. A run that fails is recorded
    and the others go on; so is one whose process was killed. On SIGTERM and Ctrl-C the runs under
    way are stopped and start again the next time.
    """
    os.environ.update(_ENVIRONMENT)
    store = Store.open(directory)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    active: dict[str, tuple[BaseProcess, RunConfig, float]] = {}
    with _one_runner(store):
        try:
            while True:
                _collect(store, active)
                store = Store.open(directory)  # `queue` may have planned further runs
                _launch(store, active, context, workers)
                if not active:
                    return store.state()
                time.sleep(_POLL)
        finally:
            for process, _, _ in active.values():
                process.terminate()
            for process, _, _ in active.values():
                process.join(10)


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _one_runner(store: Store) -> Iterator[None]:
    """Hold the queue's runner lock and tell its process number to `stop`."""
    lock = FileLock(store.directory / "claims" / "runner.lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise InputError(
            f"{store.directory}: workers are on this queue already; see `offaxis lab status`"
        ) from None
    told = store.directory / "runner.json"
    try:
        told.write_text(json.dumps({"pid": os.getpid()}))
        yield
    finally:
        told.unlink(missing_ok=True)
        lock.release()


def _launch(
    store: Store,
    active: dict[str, tuple[BaseProcess, RunConfig, float]],
    context: multiprocessing.context.ForkServerContext,
    workers: int,
) -> None:
    """Start processes for pending runs until `workers` are active."""
    for config in store.pending():
        if len(active) >= workers:
            return
        name = config.identity(store.base_digest)
        if name in active or store.held(name):
            continue
        process = context.Process(target=_attempt, args=(store.directory, config))
        process.start()
        active[name] = (process, config, time.monotonic())
        _say(f"{name}  {_words(config)}: started")


def _collect(store: Store, active: dict[str, tuple[BaseProcess, RunConfig, float]]) -> None:
    """Take leave of the processes that ended; one that ended without a result has failed."""
    for name, (process, config, started) in list(active.items()):
        if process.is_alive():
            continue
        process.join()
        del active[name]
        seconds = time.monotonic() - started
        if store.row(name).exists():
            _say(f"{name}  {_words(config)}: done in {seconds:.0f} s; {store.state()}")
            continue
        if not store.failure(name).exists():
            store.record_failure(
                name,
                f"{config}\n\nits process ended with code {process.exitcode} and left no row\n",
            )
        _say(f"{name}  {_words(config)}: failed, see {store.failure(name)}")


def _words(config: RunConfig) -> str:
    part = config.mask or config.adapter or config.edit
    what = f" [{part}]" if part else ""
    return f"{config.method} {config.task} lr {config.learning_rate:g} seed {config.seed}{what}"


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def start(store: Store, *, workers: int) -> int:
    """Do the queue in the background, in a session of its own; returns the process number."""
    with (store.directory / "queue.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "offaxis", "lab", "work", str(store.directory),
             "--workers", str(workers)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | _ENVIRONMENT,
        )  # fmt: skip
    while process.poll() is None and not is_running(store):
        time.sleep(_POLL)
    return process.pid


def is_running(store: Store) -> bool:
    """True while workers are on this queue."""
    return is_held(store.directory / "claims" / "runner.lock")


def stop(store: Store, *, patience: float = 30.0) -> bool:
    """Stop the workers; what they had under way starts again the next time. False if none ran."""
    if not is_running(store):
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads((store.directory / "runner.json").read_text())
        os.kill(int(told["pid"]), signal.SIGTERM)
    until = time.monotonic() + patience
    while is_running(store) and time.monotonic() < until:
        time.sleep(_POLL)
    return not is_running(store)


def wait(store: Store) -> State:
    """Block until the workers end."""
    while is_running(store):
        time.sleep(_POLL)
    return store.state()
