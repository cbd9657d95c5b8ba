"""What each measure is called on the page, and its formula in words."""

from __future__ import annotations

from offaxis.report.text import clean, escape

__all__ = ["KINDS", "glossary", "reason", "title"]

KINDS = {
    "principal": ("principal_overlap", "principal weights"),
    "low": ("low_magnitude_overlap", "low-magnitude weights"),
    "principal_not_low": ("principal_not_low_overlap", "principal weights that are not small"),
    "principal_top5": ("principal_overlap_top5", "principal weights, largest 5 % of changes"),
    "low_top5": ("low_magnitude_overlap_top5", "low-magnitude weights, largest 5 % of changes"),
}
"""Key on the page → the overlap's measure, and what the update overlaps with."""

_TITLES = {
    "unchanged_bf16": "Unchanged in bf16",
    "unchanged_stored": "Unchanged as stored",
    "relative_update_norm": "Relative update norm",
    "nss": "Normalised spectral shift",
    "rotation_left_deg": "Rotation, left",
    "rotation_right_deg": "Rotation, right",
    "principal_overlap": "Principal overlap",
    "low_magnitude_overlap": "Low-magnitude overlap",
    "principal_not_low_overlap": "Principal-not-small overlap",
    "principal_overlap_top5": "Principal overlap, largest 5 %",
    "low_magnitude_overlap_top5": "Low-magnitude overlap, largest 5 %",
    "update_energy_left": "Update energy in the left subspace",
    "update_energy_right": "Update energy in the right subspace",
    "update_energy_two_sided": "Update energy in both subspaces",
    "rank1_energy": "Rank-1 energy",
    "rank1_norm_share": "Rank-1 norm share",
    "effective_rank": "Effective rank",
    "nss_bound": "Bound on the spectral shift",
    "weyl_ratio": "Weyl ratio",
    "wedin_bound_deg": "Bound on every angle (Wedin), °",
    "correlation": "Correlation of tuned with base",
    "row_stripes": "Row stripes",
    "column_stripes": "Column stripes",
    "row_profile_correlation": "Row profile against the last checkpoint",
    "column_profile_correlation": "Column profile against the last checkpoint",
    "principal_near_threshold": "Entries at the principal threshold",
    "nonfinite_base": "NaN or infinite, base",
    "nonfinite_tuned": "NaN or infinite, tuned",
    "jaccard_mean": "Jaccard between runs",
}
_ENDINGS = {
    "_magnitude_null": ", magnitude null",
    "_rounding_null": ", rounding null",
    "_excess": ", minus magnitude null",
}

_REASONS = {
    "no_change": "no entry changed in bfloat16",
    "no_change_in_null": "no entry changed in bfloat16 after the shuffle",
    "no_entries": "the tensor has no entries",
    "no_update": "the update is zero",
    "no_gap_at_full_rank": "the subspace is the whole space, so it has no gap",
    "vacuous": "the update is larger than the gap, so the bound says nothing",
    "no_variation": "rows or columns cannot vary: no entry or every entry changed",
    "constant_profile": "every row or column changed alike",
    "one_place": "a single row or column",
    "not_a_matrix": "not a matrix",
    "not_asked_for": "not asked for",
    "not_sampled": "not in the sample of matrices",
    "nonfinite": "NaN or infinite entries",
    "tuned_not_wider_than_bf16": "the tuned weights are stored no wider than bfloat16",
}

_ENTRIES = (
    ("W₀, W₊, ΔW", "The base's weights, the tuned weights, and their difference W₊ − W₀."),
    ("Changed; update mask M", "The entries whose value, rounded to bfloat16, differs from base."),
    (
        "Unchanged in bf16",
        "Share of all parameters whose value, rounded to bfloat16, is the same in both. "
        "“As stored” compares in the wider of the two stored types instead.",
    ),
    (
        "Relative update norm",
        "Length of the update divided by length of the base: ‖ΔW‖ / ‖W₀‖ (Frobenius).",
    ),
    (
        "Normalised spectral shift (NSS)",
        "Distance between the singular values of W₊ and W₀, divided by the length of those of W₀. "
        "Mean over matrices.",
    ),
    (
        "Rotation, left and right",
        "Mean principal angle, in degrees, between the leading singular subspaces of W₀ and W₊ "
        "(output side, input side). Mean over matrices.",
    ),
    (
        "Principal overlap",
        "Of the changed entries, the share that lies among the principal weights: the half of the "
        "entries that is largest in a low-rank reconstruction of W₀.",
    ),
    (
        "Low-magnitude overlap",
        "Of the changed entries, the share that lies in the smaller half of |W₀|.",
    ),
    (
        "Principal-not-small overlap",
        "Of the changed entries, the share that is principal and not in the smaller half.",
    ),
    (
        "Magnitude null",
        "The overlap to expect if as many entries of each magnitude had changed, but which ones "
        "were drawn at random. It holds everything that follows from weight size alone, such as "
        "the fact that small weights change more easily in bfloat16.",
    ),
    (
        "Rounding null",
        "The overlap after shuffling the entries of ΔW inside each matrix, adding them to W₀ and "
        "rounding. It exists only where the tuned weights are stored wider than bfloat16.",
    ),
    (
        "Difference (excess)",
        "Observed overlap minus its magnitude null, paired matrix by matrix. An interval that "
        "leaves out zero is a difference; one that holds zero is none that could be told.",
    ),
    (
        "Largest 5 %",
        "The same overlap for the 5 % of entries with the largest |ΔW|, so that sparse and dense "
        "updates compare at one density.",
    ),
    (
        "Update energy in a subspace",
        "Share of ‖ΔW‖² inside the base's leading left, right or both singular subspaces.",
    ),
    (
        "Rank-1 energy and rank-1 norm share",
        "σ₁(ΔW)² divided by the sum of all σᵢ(ΔW)², and its square root.",
    ),
    (
        "Effective rank",
        "The exponential of the entropy of σᵢ(ΔW)², normalised: 1 when one direction holds all "
        "of the update.",
    ),
    (
        "Bound on the spectral shift; Weyl ratio",
        "‖ΔW‖ / ‖W₀‖ can never be less than the spectral shift; the Weyl ratio is the largest "
        "change of a singular value divided by ‖ΔW‖₂, its bound.",
    ),
    (
        "ULP distance",
        "How many bfloat16 values lie between the old and the new value of an entry, counting "
        "the new one.",
    ),
    (
        "Row and column profile",
        "The share of changed entries in each row, or in each column. Its magnitude null is the "
        "mean, over the row's entries, of the changed share of all entries of that magnitude.",
    ),
    (
        "Row stripes, column stripes",
        "Variance of the profile divided by the variance that its magnitude null expects: 1 when "
        "the size of the entries explains it, more when whole rows or columns move as one.",
    ),
    (
        "Profile against the last checkpoint",
        "Pearson correlation of a checkpoint's profile with that of the last checkpoint of its "
        "run. Its null redraws both masks together among entries of equal magnitude, so that it "
        "keeps what follows from size and from entries that stay moved.",
    ),
    (
        "Consensus of the runs",
        "The share of runs, each at its last checkpoint, in which an entry changed.",
    ),
    (
        "Jaccard between runs",
        "Entries changed in both runs divided by entries changed in either. Its magnitude null "
        "lets the runs choose independently among weights of equal magnitude.",
    ),
)


def title(measure: str) -> str:
    """The measure in words, or its own name where the page knows none."""
    for ending, words in _ENDINGS.items():
        if measure.endswith(ending):
            return _TITLES.get(measure.removesuffix(ending), clean(measure)) + words
    return _TITLES.get(measure, clean(measure))


def reason(status: str) -> str:
    """Why a number is not defined, in words; a status the page does not know stays as it is."""
    return _REASONS.get(status, status)


def glossary() -> str:
    """The glossary as an HTML definition list."""
    items = (f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in _ENTRIES)
    return f'<dl class="glossary">{"".join(items)}</dl>'
