"""The run queue: a grid of runs done in the background, one row a run, stopped at any time."""

from offaxis.lab.queue.grid import RunConfig, expand, read_grid
from offaxis.lab.queue.rows import by_checkpoint, read_rows
from offaxis.lab.queue.runner import cores, is_running, start, stop, wait, work
from offaxis.lab.queue.store import State, Store

__all__ = [
    "RunConfig",
    "State",
    "Store",
    "by_checkpoint",
    "cores",
    "expand",
    "is_running",
    "read_grid",
    "read_rows",
    "start",
    "stop",
    "wait",
    "work",
]
