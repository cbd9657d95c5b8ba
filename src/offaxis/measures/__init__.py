"""Every measure and null: pure functions, and one list that names them all."""

from typing import Literal, NamedTuple

from offaxis.measures.across import (
    changed_in_r_runs,
    changed_in_r_runs_null,
    jaccard,
    jaccard_chance,
    jaccard_magnitude_null,
)
from offaxis.measures.change import (
    column_changed,
    correlation,
    mask_picture,
    relative_update_norm,
    row_changed,
    unchanged_bf16,
    unchanged_stored,
)
from offaxis.measures.number import Number, undefined
from offaxis.measures.overlaps import (
    ALPHA,
    low_magnitude_mask,
    magnitude_null,
    overlap,
    principal_mask,
    rounding_null,
    top_update_mask,
)
from offaxis.measures.profiles import (
    Profiles,
    binned,
    change_rates,
    null_profiles,
    observed_profiles,
    profile_correlation,
    profile_correlation_null,
    stripes,
)
from offaxis.measures.spectral import (
    effective_rank,
    energy_in_subspaces,
    nss,
    nss_bound,
    rank1_energy,
    rank1_norm_share,
    rotation_deg,
    wedin_bound_deg,
    weyl_ratio,
)

__all__ = [
    "ALPHA",
    "MEASURES",
    "Measure",
    "Number",
    "Profiles",
    "binned",
    "change_rates",
    "changed_in_r_runs",
    "changed_in_r_runs_null",
    "column_changed",
    "correlation",
    "effective_rank",
    "energy_in_subspaces",
    "jaccard",
    "jaccard_chance",
    "jaccard_magnitude_null",
    "low_magnitude_mask",
    "magnitude_null",
    "mask_picture",
    "nss",
    "nss_bound",
    "null_profiles",
    "observed_profiles",
    "overlap",
    "principal_mask",
    "profile_correlation",
    "profile_correlation_null",
    "rank1_energy",
    "rank1_norm_share",
    "relative_update_norm",
    "rotation_deg",
    "rounding_null",
    "row_changed",
    "stripes",
    "top_update_mask",
    "unchanged_bf16",
    "unchanged_stored",
    "undefined",
    "wedin_bound_deg",
    "weyl_ratio",
]


class Measure(NamedTuple):
    """One name in the tables.

    over: what it is measured on, and averaged over in the summary of a pair. `profiles` are the row
    and column profiles of a matrix whose curves are kept; they are in no pair's summary. needs:
    `scan` for one pass over the entries, `series` for a later checkpoint of the same run as well,
    `spectra` for a singular value decomposition.
    """

    name: str
    unit: str
    over: Literal["entries", "matrices", "profiles"]
    needs: Literal["scan", "series", "spectra"]
    meaning: str


MEASURES = tuple(
    Measure(*row)
    for row in (
        ("unchanged_bf16", "1", "entries", "scan", "share of entries equal after rounding to bf16"),
        ("unchanged_stored", "1", "entries", "scan", "share of entries equal in the wider dtype"),
        ("relative_update_norm", "1", "entries", "scan", "‖ΔW‖ / ‖W₀‖"),
        ("correlation", "1", "entries", "scan", "cosine between W₀ and W₊"),
        ("nonfinite_base", "entries", "entries", "scan", "NaN or infinite entries of the base"),
        ("nonfinite_tuned", "entries", "entries", "scan", "NaN or infinite entries of the tuned"),
        ("low_magnitude_overlap", "1", "matrices", "scan", "share of M in the lowest half of |W₀|"),
        ("low_magnitude_overlap_magnitude_null", "1", "matrices", "scan", "its magnitude null"),
        ("low_magnitude_overlap_rounding_null", "1", "matrices", "scan", "its rounding null"),
        ("low_magnitude_overlap_top5", "1", "matrices", "scan", "the same for the top 5 % of |ΔW|"),
        ("low_magnitude_overlap_top5_magnitude_null", "1", "matrices", "scan", "its null"),
        ("principal_overlap", "1", "matrices", "spectra", "share of M in the principal half"),
        ("principal_overlap_magnitude_null", "1", "matrices", "spectra", "its magnitude null"),
        ("principal_overlap_rounding_null", "1", "matrices", "spectra", "its rounding null"),
        ("principal_overlap_top5", "1", "matrices", "spectra", "the same for the top 5 % of |ΔW|"),
        ("principal_overlap_top5_magnitude_null", "1", "matrices", "spectra", "its null"),
        ("principal_not_low_overlap", "1", "matrices", "spectra", "share of M in M_princ ∩ M_lowᶜ"),
        ("principal_not_low_overlap_magnitude_null", "1", "matrices", "spectra", "its null"),
        (
            "principal_near_threshold",
            "entries",
            "matrices",
            "spectra",
            "entries that may fall on either side of M_princ on another machine",
        ),
        ("nss", "1", "matrices", "spectra", "normalised spectral shift"),
        ("nss_bound", "1", "matrices", "scan", "‖ΔW‖ / ‖W₀‖ of the matrix, which bounds nss"),
        ("rotation_left_deg", "degrees", "matrices", "spectra", "mean angle of the top-k left"),
        ("rotation_right_deg", "degrees", "matrices", "spectra", "mean angle of the top-k right"),
        ("wedin_bound_deg", "degrees", "matrices", "spectra", "bound on every principal angle"),
        ("weyl_ratio", "1", "matrices", "spectra", "largest shift of a singular value / ‖ΔW‖₂"),
        ("rank1_energy", "1", "matrices", "spectra", "σ₁(ΔW)² / Σσᵢ²"),
        ("rank1_norm_share", "1", "matrices", "spectra", "σ₁(ΔW) / ‖ΔW‖"),
        ("effective_rank", "1", "matrices", "spectra", "exp of the entropy of σᵢ(ΔW)² / Σ"),
        ("update_energy_left", "1", "matrices", "spectra", "share of ‖ΔW‖² in the top-r left"),
        ("update_energy_right", "1", "matrices", "spectra", "share of ‖ΔW‖² in the top-r right"),
        ("update_energy_two_sided", "1", "matrices", "spectra", "share of ‖ΔW‖² in both"),
        ("row_stripes", "1", "profiles", "scan", "variance of row shares over its null's"),
        ("column_stripes", "1", "profiles", "scan", "variance of column shares over its null's"),
        ("row_profile_correlation", "1", "profiles", "series", "with the run's last checkpoint"),
        ("row_profile_correlation_magnitude_null", "1", "profiles", "series", "its null"),
        ("column_profile_correlation", "1", "profiles", "series", "with the run's last checkpoint"),
        ("column_profile_correlation_magnitude_null", "1", "profiles", "series", "its null"),
    )
)
"""Every measure that `compare` writes to the table, in its order."""
