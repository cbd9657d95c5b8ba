"""Where adapters write: each update over training, beside its null, and at equal norm.

From DAPO's test runs (`planning`), at each adapter's own rate and at the shared one. A number is a
mean over the model's matrices, its interval over seeds (Student's t, 95 %). Three nulls:

- an overlap stands beside its magnitude null (DESIGN.md, section 3): only the difference tells;
- the share of ‖ΔW‖² in the base's first r left, right, or both singular subspaces stands beside
  that of an update without any direction: r/m, r/n, r²/(mn), the mean over matrices. *Either* is
  left + right − both: 1 − either is what the update has in no principal direction at all;
- what the gradient prefers by itself: `full` and `lora`, at equal norm (`equal`).
"""

from offaxis.lab.peft.geometry.claims import CLAIMS, claims
from offaxis.lab.peft.geometry.equal import MATCHED, matched
from offaxis.lab.peft.geometry.series import GEOMETRY, MARGINS, checkpoints, geometry, isotropic
from offaxis.lab.peft.geometry.words import blocks, markdown

__all__ = [
    "CLAIMS",
    "GEOMETRY",
    "MARGINS",
    "MATCHED",
    "blocks",
    "checkpoints",
    "claims",
    "geometry",
    "isotropic",
    "markdown",
    "matched",
]
