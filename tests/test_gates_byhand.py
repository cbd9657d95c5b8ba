"""The cases that `offaxis gates --lemmas` shows, again with numpy and fractions; the names."""

from __future__ import annotations

import math
import pkgutil
import types
from fractions import Fraction

import numpy as np
import pytest

import offaxis.gates
import reference
from offaxis.gates import all_lemmas, byhand, fisher
from offaxis.gates.lemmas import Lemma
from offaxis.gates.subspaces import largest_turn, subspace_lemmas, turning_step


@pytest.fixture(scope="module")
def lemmas() -> list[Lemma]:
    return all_lemmas()


def test_whatever_fails_has_a_case_to_check_by_hand(lemmas: list[Lemma]) -> None:
    assert {one.name for one in lemmas if one.verdict == "false"} == {
        "3.3 rotation, the base's gap alone",
        "D.1 across a boundary",
        "D.2 larger weights need larger steps",
        "E.1 the frozen surrogate has the gradient of equation 4",
        "E.6 as quadratic forms",
        "E.9 clipping bounds the KL",
    }
    for one in lemmas:
        assert bool(one.by_hand) == (one.counterexamples > 0), one.name
        assert one.verdict != "false" or one.counterexamples


def stored(value: Fraction) -> Fraction:
    """Rounded to 8 significant bits, ties to even, in exact arithmetic."""
    exponent = math.floor(math.log2(abs(value)))
    spacing = Fraction(2) ** (exponent - 7)
    return round(value / spacing) * spacing  # Python rounds halves to even


def test_the_bfloat16_cases_in_exact_arithmetic() -> None:
    one, half = Fraction(1), Fraction(1, 256)
    assert (stored(one + half), stored(one - Fraction(3, 8) / 128)) == (1, Fraction(255, 256))
    assert stored(one - Fraction(3, 4) * half) == Fraction(255, 256) < 1
    for weight in (Fraction("1.0078125"), Fraction("1.5078125")):
        assert stored(weight + half) == weight + 2 * half
        assert stored(weight + half - Fraction(1, 2**20)) == weight
    assert (one - stored(Fraction(255, 256))) / one == Fraction(1, 256)
    for value in (1 + 2**-8, 1 - 3 / 1024, 255 / 256):
        assert reference.round_bf16(np.array([value]))[0] == float(stored(Fraction(value)))


def test_the_swap_by_numpy() -> None:
    left, values, _ = np.linalg.svd(np.diag([2 - 0.6, 1 + 0.6]))
    assert values[0] == pytest.approx(1.6)
    assert abs(left[1, 0]) == pytest.approx(1), "from (1, 0) to (0, 1)"
    assert "sine 1." in byhand.swapped_directions()
    assert "bound 0.6" in byhand.swapped_directions()


def test_the_coins_by_differences() -> None:
    """Slopes of equation 4 and of its surrogate in the logit, A held fixed or not."""
    at = math.log(1 / 3)

    def value(theta: float, *, moving: bool, follow: bool = False) -> float:
        p = 1 / (1 + math.exp(-theta))
        weights = (p, 1 - p) if moving else (0.25, 0.75)
        gain = (1 - p, -p) if follow else (0.75, -0.25)
        return -sum(w * a * math.log(q) for w, a, q in zip(weights, gain, (p, 1 - p), strict=True))

    def slope(**how: bool) -> float:
        return (value(at + 1e-5, **how) - value(at - 1e-5, **how)) / 2e-5

    surrogate = slope(moving=False)
    assert surrogate == pytest.approx(-3 / 16, rel=1e-6)
    assert f"= {slope(moving=True) / surrogate:.3f} " in byhand.biased_coin()
    assert f"times {slope(moving=True, follow=True) / surrogate:.3f})" in byhand.biased_coin()

    def loss(theta: float) -> float:  # KL of the tilted coin to the coin of logit θ²/2
        p = 1 / (1 + math.exp(-(theta**2) / 2))
        return 0.51 * math.log(0.51 / p) + 0.49 * math.log(0.49 / (1 - p))

    curvature = (loss(1e-3) - 2 * loss(0.0) + loss(-1e-3)) / 1e-6
    assert curvature == pytest.approx(-0.01, rel=1e-3)
    assert "-0.01 at κ = 0.0002" in byhand.flat_coin()


def test_the_unseen_outcome_by_hand() -> None:
    kl = 0.7992 * math.log(0.8) + 0.2008 * math.log(0.2008 / 0.001)
    assert f"= {kl:.3f}, above -ln 0.8 = {-math.log(0.8):.3f}" in byhand.unseen()


def test_how_far_a_small_step_turns() -> None:
    """Below half the gap no random step turns further than the constructed one; Wedin holds."""
    for share in (0.1, 0.3, 0.45):
        step = turning_step(share)
        assert np.linalg.norm(step, 2) == pytest.approx(share)
        found = largest_turn(share, draws=4000, seed=1)
        closed = math.sin(0.5 * math.asin(2 * share)) / share
        assert found.planted == pytest.approx(closed, rel=1e-9)
        assert 0.97 * closed < found.paper <= closed + 1e-9
        assert found.mixed is not None
        assert found.mixed < 1
    assert largest_turn(0.55, draws=10).paper == pytest.approx(1 / 0.55), "the swap"
    assert largest_turn(0.45, draws=10) == largest_turn(0.45, draws=10)
    (lemma,) = subspace_lemmas(draws=500)
    assert lemma.verdict == "false"


@pytest.mark.parametrize("package", [offaxis.gates, fisher])
def test_no_module_has_the_name_of_what_it_holds(package: types.ModuleType) -> None:
    """`from offaxis.gates import geometry` is the function, however it is imported."""
    modules = {one.name for one in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    for name in package.__all__:
        assert not isinstance(getattr(package, name), types.ModuleType), name
