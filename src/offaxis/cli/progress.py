"""A progress bar on standard error, for anything that reports `done`, `total` and `tensor`."""

from typing import Any

__all__ = ["Bar"]


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
