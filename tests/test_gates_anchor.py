"""Gate I on a model whose Fisher matrix is written out: every number has a second way to it."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from anchor_models import changes, fisher, flattened, naive_kl, prefixes, tiny_move
from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import AlignmentError, CheckpointError, InputError
from offaxis.gates.fisher import Move, Settings, move_of
from offaxis.gates.fisher import forms as forms_module
from offaxis.gates.fisher.bound import bounds
from offaxis.gates.fisher.exact import DERIVATIVES, Derivative
from offaxis.gates.fisher.forms import Forms, quadratic_forms
from offaxis.gates.fisher.intervals import Resampler
from offaxis.gates.fisher.nulls import NULLS, Shuffle, binned, drawn, magnitude_bins, real
from offaxis.gates.fisher.prefixes import Prefixes, problem_set
from offaxis.gates.fisher.probes import cotangent, probe
from offaxis.gates.fisher.scopes import scopes_of
from offaxis.gates.fisher.shrinking import kl, remainder_order, shrink
from offaxis.gates.fisher.spaces import CONTRASTS, SPACES, spaces_of


@pytest.fixture(scope="module")
def move() -> Move:
    return tiny_move()


@pytest.fixture(scope="module")
def given() -> Prefixes:
    return prefixes(samples=2)


@pytest.fixture(scope="module")
def matrix(move: Move, given: Prefixes) -> torch.Tensor:
    return fisher(move, given)


def forms(move: Move, given: Prefixes, method: str = "auto") -> Forms:
    return quadratic_forms(
        move,
        given,
        [real(move)],
        slabs=[[at] for at in range(len(move.units))],
        sets=[scope.units for scope in scopes_of(move.units)],
        derivative=Derivative(method),
    )


def within(move: Move, units: tuple[int, ...]) -> torch.Tensor:
    """Δ with every other unit at rest, as one vector."""
    parts = {unit.name: torch.zeros_like(one) for unit, one in zip(move.units, move.delta)}  # noqa: B905
    parts |= {move.units[at].name: move.delta[at] for at in units}
    return flattened(parts)


# The quadratic form


@pytest.mark.parametrize("method", DERIVATIVES)
def test_forms_and_gram_are_those_of_the_written_out_matrix(
    move: Move, given: Prefixes, matrix: torch.Tensor, method: str
) -> None:
    found = forms(move, given, method)
    near = 1e-6 if method == "difference" else 1e-11
    for number, scope in enumerate(scopes_of(move.units)):
        d = within(move, scope.units)
        expected = torch.einsum("i,sij,j->s", d, matrix, d)
        assert found.values[0, number] == pytest.approx(expected.numpy(), rel=near), scope
    columns = torch.stack([within(move, (at,)) for at in range(len(move.units))])
    expected = (columns @ matrix.sum(0) @ columns.T).numpy()
    assert found.gram == pytest.approx(expected, rel=near, abs=near * expected.max())


def test_a_difference_tells_its_error_and_an_exact_derivative_has_none(
    move: Move, given: Prefixes
) -> None:
    for method, told in (("difference", True), ("backward", False), ("forward", False)):
        derivative = Derivative(method)
        quadratic_forms(move, given, [real(move)], slabs=[[0]], sets=[[0]], derivative=derivative)
        assert (derivative.error is not None) is told
        assert derivative.error is None or 0 < derivative.error < 1e-5
    auto = Derivative()
    quadratic_forms(move, given, [real(move)], slabs=[[0]], sets=[[0]], derivative=auto)
    assert auto.method == "forward"


def test_auto_goes_on_to_the_next_derivative_where_one_is_missing() -> None:
    class NoForward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return 2 * ctx.saved_tensors[0] * g

    at = {"x": torch.tensor([1.0, 3.0], dtype=torch.float64)}
    d = {"x": torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)}
    derivative = Derivative()
    found = derivative.along(lambda named: NoForward.apply(named["x"]), at, d)
    assert derivative.method == "backward"
    assert found.tolist() == [[2.0, 6.0], [0.0, 12.0]]


def test_the_form_is_quadratic_and_its_batches_do_not_matter(
    move: Move, given: Prefixes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = forms(move, given)
    thrice = tiny_move({name: 3 * one for name, one in changes(move.base.model).items()})
    assert forms(thrice, given).values == pytest.approx(9 * whole.values, rel=1e-9)
    monkeypatch.setattr(forms_module, "_NUMBERS", 1)
    assert forms(move, given).values == pytest.approx(whole.values, rel=1e-12)
    order = np.random.default_rng(0).permutation(given.count * 2)
    shuffled = Prefixes(
        tuple(given.prompts[at] for at in order),
        tuple(given.completions[at] for at in order),
        given.owners[order],
    )
    found = forms(move, shuffled).values
    assert found == pytest.approx(whole.values[..., order], rel=1e-12)
    assert shuffled.over_prompts(found) == pytest.approx(given.over_prompts(whole.values))


def test_an_eigenvectors_quotient_is_its_eigenvalue(given: Prefixes, matrix: torch.Tensor) -> None:
    values, vectors = torch.linalg.eigh(matrix.sum(0))
    for at in (-1, -4, -9):
        flat, start, delta = 0.01 * vectors[:, at], 0, {}
        for name, one in tiny_move().base.model.named_parameters():
            delta[name] = flat[start : start + one.numel()].reshape(one.shape)
            start += one.numel()
        found = forms(tiny_move(delta), given).values[0, 0].sum() / 1e-4
        assert found == pytest.approx(float(values[at]), rel=1e-7)


# KL and its limit


def test_kl_is_the_sum_over_the_vocabulary_at_every_prefix(move: Move, given: Prefixes) -> None:
    move.place(1.0)
    there, back = naive_kl(move, given, 1.0)
    assert kl(move.tuned, move.base, given) == pytest.approx(there, rel=1e-11)
    assert kl(move.base, move.tuned, given) == pytest.approx(back, rel=1e-11)


def test_kl_tends_to_half_the_form_with_a_cubic_remainder(move: Move, given: Prefixes) -> None:
    form = float(given.over_prompts(forms(move, given).values[0, 0]).mean())
    found = shrink(move, given, form, halvings=10)
    for ratio, order in (
        (found.ratio_tuned_base, found.order_tuned_base),
        (found.ratio_base_tuned, found.order_base_tuned),
    ):
        assert ratio[-1] == pytest.approx(1, abs=1e-3)
        assert abs(ratio[-1] - 1) < abs(ratio[-4] - 1) / 6
        assert order == pytest.approx(3, abs=0.05)
    there, _ = naive_kl(move, given, 0.25)
    assert found.kl_tuned_base[2] == pytest.approx(np.mean(there), rel=1e-9)
    names = [unit.name for unit in move.units]
    wrong = shrink(move, given, 1.1 * form, halvings=10)
    assert wrong.order_tuned_base == pytest.approx(2, abs=0.05), "a wrong form is seen"
    assert torch.equal(
        dict(move.tuned.model.named_parameters())["lm_head.weight"],
        move.origin["lm_head.weight"] + dict(zip(names, move.delta, strict=True))["lm_head.weight"],
    ), "the tuned model stands where it stood"


def test_the_order_is_read_where_it_is_planted() -> None:
    steps = tuple(0.5**k for k in range(9))
    for order in (1, 2):
        ratios = tuple(1 + 0.3 * step**order for step in steps)
        assert remainder_order(steps, ratios) == pytest.approx(2 + order)
    assert remainder_order(steps, tuple(1.0 for _ in steps)) is None
    assert remainder_order(steps, tuple(None for _ in steps)) is None


# Nulls


def test_draws_keep_the_norm_of_every_part_and_nothing_else(move: Move) -> None:
    for null, number in product(NULLS, range(len(move.units))):
        delta = move.delta[number]
        one = drawn(move, null, draw=0, seed=0)(number)
        assert float(one.norm()) == pytest.approx(float(delta.norm()), rel=1e-14)
        assert torch.equal(one, drawn(move, null, draw=0, seed=0)(number))
        if null.startswith("permuted"):
            assert torch.equal(one.reshape(-1).sort()[0], delta.reshape(-1).sort()[0])
        if null == "permuted_in_bins" or delta.dim() == 1:
            continue  # entries alone in their bins; so few that two draws may be the same
        assert not torch.equal(one, delta)
        assert not torch.equal(one, drawn(move, null, draw=1, seed=0)(number))
        assert not torch.equal(one, drawn(move, null, draw=0, seed=1)(number))
        if null == "signs":
            assert torch.equal(one.abs(), delta.abs())


def test_a_permutation_within_bins_stays_within_them() -> None:
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 5, size=200).astype(np.intp)
    delta = rng.normal(size=200)
    found = NULLS["permuted_in_bins"](delta, bins, np.random.default_rng(1))
    for one in range(5):
        assert sorted(found[bins == one]) == sorted(delta[bins == one])
    assert not np.array_equal(found, delta)


def test_bins_are_those_of_the_magnitude_null() -> None:
    values = torch.tensor([1.0, -1.0, 1.01, 1.25, 2.0, 0.0, -0.0])
    bins = magnitude_bins(values).tolist()
    assert bins[0] == bins[1] == bins[2]
    assert len({bins[0], bins[3], bins[4], bins[5]}) == 4
    assert bins[5] == bins[6]


def test_the_moments_of_a_shuffle_are_those_over_all_shuffles() -> None:
    rng = np.random.default_rng(0)
    delta, gradient = rng.normal(size=6) + 0.5, rng.normal(size=6) + 0.3
    bins = np.array([1, 1, 1, 2, 2, 3], np.intp)
    found = Shuffle(delta, bins).moments(gradient, gradient**2, binned(bins, gradient**2))
    everywhere = [gradient @ delta[list(order)] for order in permutations(range(6))]
    inside = [
        gradient @ delta[[*first, *second, 5]]
        for first in permutations(range(3))
        for second in permutations((3, 4))
    ]
    signed = [gradient @ (delta * signs) for signs in product((-1, 1), repeat=6)]
    for null, values in (
        ("permuted", everywhere), ("permuted_in_bins", inside), ("signs", signed),
    ):  # fmt: skip
        assert found[null] == pytest.approx((np.mean(values), np.var(values)), abs=1e-12), null
    many = [
        gradient @ NULLS["gaussian"](delta, bins, np.random.default_rng(seed))
        for seed in range(4000)
    ]
    assert found["gaussian"][0] == 0
    assert found["gaussian"][1] == pytest.approx(np.var(many), rel=0.1)


# Probes and spaces


def test_a_cotangents_outer_product_is_the_softmaxs_covariance() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]], dtype=torch.float64)
    for at, row in enumerate(chances):
        every = [
            cotangent(chances, torch.tensor([signs, signs], dtype=torch.float64))[at]
            for signs in product((-1.0, 1.0), repeat=3)
        ]
        mean = torch.stack([torch.outer(one, one) for one in every]).mean(0)
        assert torch.allclose(mean, torch.diag(row) - torch.outer(row, row), atol=1e-15)


def test_probes_agree_with_the_written_out_matrix(
    move: Move, given: Prefixes, matrix: torch.Tensor
) -> None:
    """Unbiased: within 4.5 standard errors everywhere, and those are small."""
    spaces = spaces_of(move)
    assert sorted(spaces) == [at for at, one in enumerate(move.units) if one.part.is_matrix] != []
    found = probe(move, given, spaces, probes=250, seed=0)
    each = np.stack([matrix[given.owners == at].mean(0).numpy() for at in range(given.count)])

    def check(samples: np.ndarray, expected: float) -> None:
        """samples: (prompts, probes)"""
        error = np.sqrt((samples.var(1, ddof=1) / samples.shape[1]).sum()) / given.count
        assert abs(samples.mean() - expected) < 4.5 * error + 1e-12
        assert error < 0.2 * abs(expected) + 1e-12

    for scope in scopes_of(move.units):
        inside = list(scope.units)
        d = within(move, scope.units).numpy()
        check(found.real[..., inside].sum(-1) ** 2, float((d @ each @ d).mean()))
        assert found.real_form(scope.units) == pytest.approx(
            (found.real[..., inside].sum(-1) ** 2).mean(1)
        )
    for at, one in spaces.items():
        inside = np.flatnonzero(within(move, (at,)).numpy())
        block = each[:, inside][:, :, inside]
        projections = _projections(one, tuple(move.delta[at].shape))
        gradient = np.random.default_rng(at).normal(size=one.principal.shape)
        bins = magnitude_bins(one_base(gradient.shape))
        sums = binned(bins, gradient.reshape(-1) ** 2)
        exactly = one.traces(gradient, gradient**2, sums)
        for number, name in enumerate(SPACES):
            flat = gradient.reshape(-1)
            assert exactly[number] == pytest.approx(flat @ projections[name] @ flat, abs=1e-12)
            trace = np.einsum("pij,ji->p", block, projections[name]).mean()
            check(found.traces[:, :, at, number], float(trace))
            if name != "principal_by_magnitude":
                assert np.trace(projections[name]) == pytest.approx(one.dims[number])


def _projections(one, shape: tuple[int, ...]) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    eye = np.eye(shape[0] * shape[1])
    left, right = one.left @ one.left.T, one.right @ one.right.T
    cols, rows = np.eye(shape[1]), np.eye(shape[0])
    share = one.share[magnitude_bins(one_base(shape))]
    return {
        "all": eye,
        "principal": np.diag(one.principal.reshape(-1).astype(float)),
        "non_principal": np.diag(~one.principal.reshape(-1)).astype(float),
        "principal_by_magnitude": np.diag(share),
        "low_magnitude": np.diag(one.low.reshape(-1).astype(float)),
        "high_magnitude": np.diag(~one.low.reshape(-1)).astype(float),
        "top": np.kron(left, right),
        "left": np.kron(left, cols),
        "right": np.kron(rows, right),
        "outside": np.kron(rows - left, cols - right),
    }


def one_base(shape: tuple[int, ...]) -> torch.Tensor:
    """The tiny model's only matrix."""
    found = tiny_move().origin["model.layers.0.mlp.up_proj.weight"]
    assert tuple(found.shape) == shape
    return found


def test_the_nulls_expectation_is_the_mean_of_many_draws(
    move: Move, given: Prefixes, matrix: torch.Tensor
) -> None:
    """Over the whole model, where parts that are permuted apart have means that add up."""
    every = tuple(range(len(move.units)))
    found = probe(move, given, {}, probes=250, seed=1).null_form(every).mean(0)
    whole = matrix.mean(0)
    for at, null in enumerate(NULLS):
        many = []
        for draw in range(300):
            direction = drawn(move, null, draw=draw, seed=3)
            d = flattened({unit.name: direction(n) for n, unit in enumerate(move.units)})
            many.append(float(d @ whole @ d))
        assert found[at] == pytest.approx(np.mean(many), rel=0.25), null
        assert np.std(many) / np.mean(many) / 300**0.5 < 0.1


def test_every_contrast_is_of_spaces_that_exist() -> None:
    assert {one for pair in CONTRASTS.values() for one in pair} < set(SPACES)


# The bound


def test_the_bound_holds_where_kl_is_its_quadratic_form(move: Move, given: Prefixes) -> None:
    gram = forms(move, given).gram / len(given.prompts)
    norms = np.array([float(one.norm()) for one in move.delta])
    full, span, parts = bounds(
        gram, norms, kl=0.5 * gram.sum(), parameters=90, positions=20, vocabulary=5
    )
    assert full.status == "vacuous"
    assert full.mu == 0
    assert full.bound is None
    assert span.status == "identity"
    assert span.ratio == pytest.approx(1, rel=1e-12)
    assert parts.status == "ok"
    assert parts.dimension == len(norms)
    assert parts.ratio is not None
    assert parts.ratio <= 1
    scaled = gram / np.outer(norms, norms)
    assert parts.mu == pytest.approx(np.linalg.eigvalsh(scaled)[0], rel=1e-12)
    assert parts.bound == pytest.approx(np.sqrt(gram.sum() / parts.mu), rel=1e-12)


def test_bounds_that_say_nothing_say_so() -> None:
    none, still, parts = bounds(
        np.zeros((2, 2)), np.zeros(2), kl=0.0, parameters=10, positions=100, vocabulary=5
    )
    assert [none.status, still.status, parts.status] == ["undetermined", "no_move", "no_move"]
    flat = bounds(np.ones((2, 2)), np.ones(2), kl=1.0, parameters=10, positions=1, vocabulary=2)
    assert flat[2].status == "vacuous"
    assert flat[2].bound is None


# Intervals, errors


def test_a_ratio_of_proportional_numbers_has_no_width() -> None:
    values = np.array([1.0, 2.0, 5.0, 9.0])
    found = Resampler(4, seed=0).ratio(3 * values, values)
    assert (found.low, found.value, found.high) == pytest.approx((3, 3, 3))
    apart = Resampler(4, seed=0).ratio(values[::-1], values)
    assert apart.low is not None
    assert apart.high is not None
    assert apart.low < 1 < apart.high
    assert Resampler(1, seed=0).mean(values[:1]).low is None
    assert Resampler(4, seed=0).ratio(values, 0 * values).value is None


def test_a_tuned_model_that_does_not_fit_is_refused() -> None:
    base = tiny_move().base
    tensors = {name: one.detach().clone() for name, one in base.model.named_parameters()}
    for name, other in (("lm_head.weight", torch.zeros(9, 9)), ("extra.weight", torch.zeros(3, 3))):
        with pytest.raises(AlignmentError, match=r"give models of one architecture|architecture"):
            move_of(base, MemoryCheckpoint(tensors | {name: other}, config={}))
    tensors["lm_head.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN"):
        move_of(base, MemoryCheckpoint(tensors, source="broken"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"draws": 0}, "draws 0"),
        ({"probes": -1}, "probes -1"),
        ({"halvings": 30}, "halvings 30"),
        ({"derivative": "symbolic"}, "choose one of auto, forward"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**wrong)  # type: ignore[arg-type]


def test_prompts_come_as_texts_or_as_a_file(tmp_path: Path) -> None:
    assert [one.prompt for one in problem_set(["1+1=", "2+2="], 1).problems] == ["1+1="]
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "1+1=", "answer": "2"}\n' * 3)
    with pytest.raises(InputError):
        problem_set([], None)
    assert len(problem_set(path, 2).problems) == 2
