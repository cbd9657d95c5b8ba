"""What a verb shows: progress on standard error while it works, its result on standard output."""

from collections.abc import Callable
from typing import Any

__all__ = ["Bar", "print_result", "with_bar"]

Result = dict[str, Any]


def with_bar(work: Callable[[Any], Result]) -> Result:
    """The result of `work`, its progress (`done`, `total`, `tensor`) shown on standard error."""
    from rich.console import Console

    with Bar(Console(stderr=True)) as advance:
        return work(advance)


def print_result(found: Result, as_json: bool, lines: Callable[[Result], list[str]]) -> None:
    """Print a result as JSON alone, or line by line, without characters that a terminal obeys."""
    import json

    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for line in lines(found):
        print("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line))


class Bar:
    """Shown while the block lasts; enter it to get the function that advances it."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Any:
        self._bar.start()
        task = self._bar.add_task("", total=None)

        def advance(step: Any) -> None:
            self._bar.update(task, completed=step.done, total=step.total, description=step.tensor)

        return advance

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
