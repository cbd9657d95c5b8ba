"""A run's checkpoints as lossless deltas: stored while it trains, any of them given back exactly.

| path below the run's directory | what it is |
|---|---|
| `checkpoint-N/` | whole, as Trainer wrote it: the newest ones, and the best |
| `deltas/index.json` | which steps are stored, what each one needs, sizes and digests |
| `deltas/anchor-N/` | checkpoint N whole, which the deltas after it were made against |
| `deltas/checkpoint-N.delta` | any other checkpoint: what `offaxis delta` reads |
| `deltas/training.lock`, `deltas/restoring.lock` | held by processes that train or restore |

A step is listed after its delta has been decoded once and lies on the disk, and a whole folder is
removed after its step is listed, by a rename first. So a kill at any moment leaves every listed
step restorable; what it leaves half done is hidden or unlisted, and goes at the next start.
"""

from offaxis.train.checkpoints.callback import DeltaCheckpointCallback
from offaxis.train.checkpoints.restoring import restore_checkpoint

__all__ = ["DeltaCheckpointCallback", "restore_checkpoint"]
