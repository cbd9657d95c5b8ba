"""The three gates of The Path Not Taken, each statement measured beside its bound and its null."""

from offaxis.gates.checkpoints import Gates, check_checkpoints
from offaxis.gates.clipping import Clipped, clipping_study, ppo
from offaxis.gates.expansions import tilt_lemmas
from offaxis.gates.geometry import Check, geometry
from offaxis.gates.lemmas import Lemma, bf16_lemmas, largest_probe
from offaxis.gates.melting import Melting, melting
from offaxis.gates.nulls import Interval, Judged, Null, geometry_with_nulls
from offaxis.gates.policies import Policy, curved, low_rank, tabular
from offaxis.gates.store import Stored, drift, store_steps
from offaxis.gates.tilt import Circle, Tilt, circle, leash_limit, leash_study, tilt

__all__ = [
    "Check",
    "Circle",
    "Clipped",
    "Gates",
    "Interval",
    "Judged",
    "Lemma",
    "Melting",
    "Null",
    "Policy",
    "Stored",
    "Tilt",
    "bf16_lemmas",
    "check_checkpoints",
    "circle",
    "clipping_study",
    "curved",
    "drift",
    "geometry",
    "geometry_with_nulls",
    "largest_probe",
    "leash_limit",
    "leash_study",
    "low_rank",
    "melting",
    "ppo",
    "store_steps",
    "tabular",
    "tilt",
    "tilt_lemmas",
]
