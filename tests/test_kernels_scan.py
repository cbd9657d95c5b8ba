"""The fused bit scan against dense references, and bfloat16 facts proved by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import reference
from offaxis.kernels import ULP_BINS, Scan, scan, unpack
from offaxis.kernels import scan as scan_package

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "f8": torch.float8_e4m3fn,
}
NAN = float("nan")
INF = float("inf")


def noisy(
    shape: tuple[int, ...], *, seed: int = 0, density: float = 0.4
) -> tuple[torch.Tensor, ...]:
    """Two float64 tensors over many binades with zeros of both signs and subnormals; `density`
    is the share of entries that get a step, small against some entries and large against others."""
    generator = np.random.default_rng(seed)
    x = np.array(generator.normal(size=shape) * 2.0 ** generator.integers(-12, 4, shape))
    step = generator.normal(size=shape) * 2.0 ** generator.integers(-16, 0, shape)
    y = np.array(x + np.where(generator.random(shape) < density, step, 0.0))
    for array, special in itertools.product((x, y), (0.0, -0.0, 1e-40, -3e-39)):
        array[generator.random(shape) < 0.03] = special
    return torch.from_numpy(x), torch.from_numpy(y)


def check(base: torch.Tensor, tuned: torch.Tensor, found: Scan | None = None) -> None:
    """Every field of the scan of finite tensors, against the reference."""
    found = found or scan(base, tuned)
    changed = reference.changed_bf16(base, tuned)
    width = base.shape[-1] if base.ndim else 1
    table = changed.reshape(-1, width) if changed.size else np.zeros((0, width), bool)
    assert found.entries == base.numel()
    assert found.changed == changed.sum()
    assert found.changed_stored == reference.changed_stored(base, tuned).sum()
    assert found.rows.tolist() == table.sum(1).tolist() if base.ndim > 1 else found.rows.sum()
    assert found.columns.tolist() == table.sum(0).tolist()
    assert found.ulp_histogram.tolist() == reference.ulp_histogram(base, tuned)
    assert np.array_equal(unpack(found.mask, tuple(base.shape)), changed)
    assert found.mask.size == -(-base.numel() // 8)
    sums = (found.update_square, found.base_square, found.cross)
    assert sums == pytest.approx(reference.finite_sums(base, tuned), rel=1e-6)
    assert (found.nonfinite_base, found.nonfinite_tuned) == (0, 0)


@pytest.mark.parametrize("tuned", DTYPES)
@pytest.mark.parametrize("base", DTYPES)
def test_every_pair_of_dtypes_agrees_with_the_reference(base: str, tuned: str) -> None:
    x, y = noisy((37, 83))
    check(x.to(DTYPES[base]), y.to(DTYPES[tuned]))


@pytest.mark.parametrize("dtype", ["bf16", "f32", "f64"])
@pytest.mark.parametrize(
    "shape",
    [(), (1,), (7,), (4096,), (1, 1), (1, 1025), (1025, 1), (3, 13), (5, 1024), (40, 2050),
     (2, 3, 5), (300, 1000)],
    ids=str,
)  # fmt: skip
def test_every_shape_agrees_with_the_reference(shape: tuple[int, ...], dtype: str) -> None:
    x, y = noisy(shape)
    check(x.to(DTYPES[dtype]), y.to(DTYPES[dtype]))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4)], ids=str)
def test_an_empty_tensor_has_an_empty_scan(shape: tuple[int, ...]) -> None:
    found = scan(torch.zeros(shape), torch.zeros(shape))
    assert (found.entries, found.changed, found.mask.size) == (0, 0, 0)
    assert found.ulp_histogram.tolist() == [0] * len(ULP_BINS)


@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_every_density_agrees_with_the_reference(density: float, dtype: str) -> None:
    x = torch.randn(64, 200, dtype=torch.float64)
    hit = torch.rand(x.shape) < density
    y = torch.where(hit, x * 1.5, x)
    found = scan(x.to(DTYPES[dtype]), y.to(DTYPES[dtype]))
    check(x.to(DTYPES[dtype]), y.to(DTYPES[dtype]), found)
    assert found.changed == hit.sum()


def test_a_view_that_is_not_contiguous_is_read_in_row_major_order() -> None:
    x, y = (one.to(torch.bfloat16) for one in noisy((50, 30)))
    check(x.T, y.T, scan(x.T, y.T))
    check(x[:, ::2], y[:, ::2], scan(x[:, ::2], y[:, ::2]))


@pytest.mark.parametrize(
    ("base", "tuned", "changed"),
    [
        pytest.param(0x0000, 0x8000, 0, id="both zeros are one"),
        pytest.param(0x0000, 0x0001, 1, id="zero and the smallest subnormal"),
        pytest.param(0x8001, 0x0001, 1, id="subnormals of two signs"),
        pytest.param(0x7FC0, 0x7FC0, 0, id="the same NaN"),
        pytest.param(0x7FC0, 0x7FC1, 1, id="NaNs of two payloads"),
        pytest.param(0x7FC0, 0xFFC0, 1, id="NaNs of two signs"),
        pytest.param(0x7FC0, 0x3F80, 1, id="a NaN appears"),
        pytest.param(0x7F81, 0x7F80, 1, id="NaN beside infinity"),
        pytest.param(0x7F80, 0x7F80, 0, id="the same infinity"),
        pytest.param(0x7F80, 0xFF80, 1, id="infinities of two signs"),
        pytest.param(0xFF80, 0x0000, 1, id="infinity and zero"),
    ],
)
def test_special_codes(base: int, tuned: int, changed: int) -> None:
    a, b = (torch.full((3, 11), 0.5, dtype=torch.bfloat16) for _ in "ab")
    a.view(torch.uint16)[1, 4], b.view(torch.uint16)[1, 4] = base, tuned
    for one, other in ((a, b), (b, a)):
        found = scan(one, other)
        assert found.changed == found.changed_stored == changed
        assert found.rows.tolist() == [0, changed, 0]
        assert unpack(found.mask, (3, 11))[1, 4] == bool(changed)
        assert scan(one, other, detail=False).changed == changed
    bad = sum(code & 0x7FFF >= 0x7F80 for code in (base,)), (tuned & 0x7FFF) >= 0x7F80
    found = scan(a, b)
    assert (found.nonfinite_base, found.nonfinite_tuned) == bad
    assert found.base_square == pytest.approx(0.25 * 32), "nothing but the 32 entries of 0.5"


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF], ids=["nan", "-nan", "inf", "-inf"])
def test_widening_a_tensor_changes_nothing_in_it(value: float, wide: torch.dtype) -> None:
    x = torch.tensor([value, 1.0, -0.0], dtype=torch.bfloat16)
    for one, other in ((x, x.to(wide)), (x.to(wide), x), (x.to(wide), x.to(wide))):
        found = scan(one, other)
        assert (found.changed, found.changed_stored) == (0, 0)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_nonfinite_entries_are_counted_and_kept_out_of_the_sums(dtype: str) -> None:
    x, y = (one.to(DTYPES[dtype]) for one in noisy((20, 40)))
    x[3, 5], x[7, 7], y[7, 7], y[9, 1] = NAN, INF, -INF, NAN
    found = scan(x, y)
    assert (found.nonfinite_base, found.nonfinite_tuned) == (2, 2)
    assert found.changed == reference.changed_bf16(x, y).sum()
    sums = (found.update_square, found.base_square, found.cross)
    assert sums == pytest.approx(reference.finite_sums(x, y), rel=1e-6)


def test_float64_is_rounded_once() -> None:
    """1 + 2⁻⁸ + 2⁻⁴⁰ lies above a tie. By way of float32 it lands on the tie and rounds down."""
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    right, wrong = torch.tensor([1 + 2.0**-7]), torch.tensor([1.0])
    assert reference.round_bf16(value.numpy()) == right.numpy()
    assert value.to(torch.bfloat16) == wrong.to(torch.bfloat16), "torch now rounds float64 once"
    assert scan(value, right.to(torch.bfloat16)).changed == 0
    assert scan(value, wrong.to(torch.bfloat16)).changed == 1


def test_float64_rounding_is_exact_around_every_tie() -> None:
    """All finite codes: the tie above each, and the float64 and float32 values beside that tie."""
    codes = np.arange(0x7F80, dtype=np.uint32)
    values = (codes << 16).view(np.float32).astype(np.float64)
    ties = (values[:-1] + values[1:]) / 2
    beside = [ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf)]
    beside += [ties * (1 - 2.0**-26), ties * (1 + 2.0**-26)]
    x = torch.from_numpy(np.concatenate([*beside, *(-one for one in beside)]))
    expected = torch.from_numpy(reference.round_bf16(x.numpy())).to(torch.bfloat16)
    assert scan(x, expected).changed == 0
    assert scan(expected, x).changed == 0
    single = x.to(torch.float32)
    assert scan(single, single.to(torch.bfloat16)).changed == 0


def test_float64_overflows_to_infinity_like_bfloat16() -> None:
    edge = 2.0**128 - 2.0**119  # half way between the largest bfloat16 and 2¹²⁸
    x = torch.tensor([np.nextafter(edge, 0), edge, 1e300, -1e300], dtype=torch.float64)
    expected = torch.tensor([2.0**128 - 2.0**120, INF, INF, -INF], dtype=torch.float64)
    assert scan(x, expected.to(torch.bfloat16)).changed == 0


def every_finite_value() -> tuple[np.ndarray, np.ndarray]:
    """(codes, values) of all finite bfloat16 in ascending order, one zero."""
    codes = np.arange(0x10000)
    codes = codes[((codes & 0x7FFF) < 0x7F80) & (codes != 0x8000)]
    codes = codes[np.argsort(reference.line_position(codes))]
    return codes, (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def as_bf16(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes.astype(np.uint16)).view(torch.bfloat16)


def test_values_that_differ_never_pass_the_papers_relative_probe() -> None:
    """|a − b| ≤ 10⁻³·max(|a|, |b|) holds for no two distinct finite bfloat16 values.

    Neighbours suffice: for a < b < c of one sign the relative distance of a and c exceeds that
    of the outer neighbours, and across zero it is at least 1.
    """
    codes, values = every_finite_value()
    assert values.size == 2 * 0x7F80 - 1
    a, b = values[:-1], values[1:]
    assert not np.any(np.abs(a - b) <= 1e-3 * np.maximum(np.abs(a), np.abs(b)))
    assert scan(as_bf16(codes[:-1]), as_bf16(codes[1:])).changed == codes.size - 1
    assert scan(as_bf16(codes), as_bf16(codes)).changed == 0


def test_the_ulp_distance_counts_steps_along_the_real_line() -> None:
    codes, _ = every_finite_value()
    for steps in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024,
                  1025, 40000, codes.size - 1):  # fmt: skip
        a, b = as_bf16(codes[:-steps]), as_bf16(codes[steps:])
        expected = reference.ulp_histogram(a[:1], b[:1])
        place = expected.index(1)
        for found in (scan(a, b), scan(b, a)):
            assert found.ulp_histogram[place] == found.ulp_histogram.sum() == a.numel()


@pytest.mark.parametrize("tuned", DTYPES)
@pytest.mark.parametrize("base", ["bf16", "f32"])
def test_counts_alone_agree_with_all_features(base: str, tuned: str) -> None:
    x, y = noisy((600, 1001), density=0.1)
    a, b = x.to(DTYPES[base]), y.to(DTYPES[tuned])
    alone, all_of_it = scan(a, b, detail=False), scan(a, b)
    assert alone.changed == all_of_it.changed
    assert alone.changed_stored == all_of_it.changed_stored


@pytest.mark.parametrize(
    ("shape", "pieces"),
    [pytest.param((131_000, 1), None, id="one column"), ((70_000, 3), [(0, 70_000)])],
)
def test_column_counts_do_not_overflow(
    shape: tuple[int, int], pieces: list[tuple[int, int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one span the columns are counted in 16 bits, flushed before 65,536 rows."""
    if pieces is not None:
        module = __import__("sys").modules[scan_package.__module__]
        monkeypatch.setattr(module, "spans", lambda count, **_: pieces)
    x = torch.ones(shape, dtype=torch.bfloat16)
    y = x * 2
    y[:, 1:2] = 1
    assert scan(x, y).columns.tolist() == [shape[0], 0, shape[0]][: shape[1]]


@pytest.mark.parametrize("power", [-100, -80, -60, 0, 40, 62, 80, 100])
@pytest.mark.parametrize("moved", [0.0, 2.0**-6, 2.0**-18])
def test_norms_scale_with_the_weights(power: int, moved: float) -> None:
    """Sums of squares in float32 must notice underflow and overflow; a power of two is exact."""
    x = torch.randn(16, 600, generator=torch.Generator().manual_seed(0))
    y = x + moved * torch.randn(16, 600, generator=torch.Generator().manual_seed(1))
    scale = 2.0**power
    found = scan(x * scale, y * scale)
    sums = [s / scale**2 for s in (found.update_square, found.base_square, found.cross)]
    assert sums == pytest.approx(reference.finite_sums(x, y), rel=1e-6)


def test_long_sums_keep_their_digits() -> None:
    x = torch.randn(1000, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    y = x + 1e-5 * torch.randn(1000, 1024, generator=torch.Generator().manual_seed(1))
    found = scan(x, y)
    sums = (found.update_square, found.base_square, found.cross)
    assert sums == pytest.approx(reference.finite_sums(x, y), rel=3e-7)


def test_exchanging_the_sides_changes_no_count() -> None:
    x, y = (one.to(torch.bfloat16) for one in noisy((33, 65)))
    one, other = scan(x, y), scan(y, x)
    assert one.changed == other.changed
    assert np.array_equal(one.mask, other.mask)
    assert one.ulp_histogram.tolist() == other.ulp_histogram.tolist()
    assert one.update_square == other.update_square


def test_moving_rows_moves_their_counts() -> None:
    x, y = (one.to(torch.bfloat16) for one in noisy((33, 65)))
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    one, other = scan(x, y), scan(x[order], y[order])
    assert other.rows.tolist() == one.rows[order.numpy()].tolist()
    assert other.columns.tolist() == one.columns.tolist()


def test_different_shapes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3, 2\)"):
        scan(torch.zeros(2, 3), torch.zeros(3, 2))


def test_a_changed_share_of_one_is_reached() -> None:
    x = torch.ones(9, 9, dtype=torch.bfloat16)
    found = scan(x, -x)
    assert found.changed == 81
    assert math.isclose(found.update_square, 4 * 81)
    assert np.unpackbits(found.mask).sum() == 81, "no bit beyond the last entry"
