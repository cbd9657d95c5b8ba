"""The lab's task families: arithmetic in steps, small programs on lists, countdown."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from offaxis.errors import InputError
from offaxis.lab.tasks.arithmetic import Arithmetic
from offaxis.lab.tasks.countdown import Countdown
from offaxis.lab.tasks.family import (
    DIFFICULTIES,
    STYLES,
    Mixture,
    Problem,
    Split,
    Style,
    Task,
    split_of,
)
from offaxis.lab.tasks.programs import Programs

__all__ = [
    "DIFFICULTIES",
    "STYLES",
    "TASKS",
    "Mixture",
    "Problem",
    "Split",
    "Style",
    "Task",
    "split_of",
    "task_named",
]

TASKS: Mapping[str, Task[Any]] = MappingProxyType(
    {task.name: task for task in (Arithmetic(), Programs(), Countdown())}
)
"""Every family, by name."""


def task_named(name: str) -> Task[Any]:
    """The family of that name, or InputError."""
    if name not in TASKS:
        raise InputError(f"task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]
