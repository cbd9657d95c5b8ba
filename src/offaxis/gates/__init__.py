"""The three gates of The Path Not Taken, each statement measured beside its bound and its null."""

from offaxis.gates.checkpoints import Gates, check_checkpoints
from offaxis.gates.clipping import Clipped, clipping_study, outside_by_update, ppo
from offaxis.gates.expansions import tilt_lemmas
from offaxis.gates.fisher import Anchor, anchor, anchor_summary, versus, versus_summary
from offaxis.gates.lemmas import Lemma, bf16_lemmas, largest_probe
from offaxis.gates.matrix import Check, geometry
from offaxis.gates.nulls import Interval, Judged, Null, geometry_with_nulls
from offaxis.gates.oracle import Circle, Tilt, circle, leash_limit, leash_study, tilt
from offaxis.gates.policies import Policy, curved, low_rank, tabular
from offaxis.gates.runs import Rates, lost_steps, rates
from offaxis.gates.store import Stored, drift, store_steps
from offaxis.gates.studies import policy_tables, store_table
from offaxis.gates.subspaces import subspace_lemmas
from offaxis.gates.sweep import Melting, melting

__all__ = [
    "Anchor",
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
    "Rates",
    "Stored",
    "Tilt",
    "all_lemmas",
    "anchor",
    "anchor_summary",
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
    "lost_steps",
    "low_rank",
    "melting",
    "outside_by_update",
    "policy_tables",
    "ppo",
    "rates",
    "store_steps",
    "store_table",
    "subspace_lemmas",
    "tabular",
    "tilt",
    "tilt_lemmas",
    "versus",
    "versus_summary",
]


def all_lemmas() -> list[Lemma]:
    """Every statement that was tried: theorem 3.3, appendix D, appendix E."""
    return [*subspace_lemmas(), *bf16_lemmas(), *tilt_lemmas()]
