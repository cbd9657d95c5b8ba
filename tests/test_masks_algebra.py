"""Masks as sets, and rules as text: laws, round trips, texts that mean harm."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny
from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.masks import Mask, Origin, build
from offaxis.masks.expression import filled, parse

SHAPES = {"a.up_proj.weight": (3, 7), "b.up_proj.weight": (2, 8), "c.experts.down_proj": (3, 5, 3)}


def drawn(seed: int) -> Mask:
    """A mask of three odd tensors, each of some density from 0 to 1."""
    rng = np.random.default_rng(seed)
    bits = {
        name: np.packbits(
            rng.random(np.prod(shape)) < rng.choice([0, 0.1, 0.5, 1]), bitorder="little"
        )
        for name, shape in SHAPES.items()
    }
    origins = {name: Origin("BF16", f"{i:032x}") for i, name in enumerate(SHAPES)}
    return Mask(bits, SHAPES, origins, f"m{seed}")


masks = st.integers(0, 1000).map(drawn)


def sound(mask: Mask) -> Mask:
    for name, shape in SHAPES.items():
        entries = int(np.prod(shape))
        assert not np.unpackbits(mask.bits[name], bitorder="little")[entries:].any()
        assert mask.count(name) == int(mask[name].sum())
        assert mask[name].shape == shape
    assert mask.selected == sum(int(flags.sum()) for flags in mask.values())
    assert mask.density == mask.selected / (21 + 16 + 45)
    return mask


@given(masks, masks, masks)
def test_masks_are_sets(a: Mask, b: Mask, c: Mask) -> None:
    assert ~(a | b) == ~a & ~b
    assert ~(a & b) == ~a | ~b
    assert ~~a == a
    assert a - b == a & ~b
    assert a ^ b == (a | b) - (a & b)
    assert a & (b | c) == (a & b) | (a & c)
    assert (a & ~a).selected == 0
    assert (a | ~a).density == 1.0
    for one in (a, ~a, a | b, a & b, a - b, a ^ b, ~(a ^ c)):
        sound(one)
    for name in a:
        assert torch.equal((a - b)[name], a[name] & ~b[name])
        assert torch.equal((a ^ b)[name], a[name] ^ b[name])


def test_equality_is_of_entries_and_base_not_of_rules() -> None:
    one = drawn(3)
    assert Mask(one.bits, one.shapes, one.origins, "another") == one
    assert one != ~one
    assert one != "mask"
    elsewhere = {name: Origin("F32", origin.checksum) for name, origin in one.origins.items()}
    assert Mask(one.bits, one.shapes, elsewhere, one.rule) != one
    assert {"a.up_proj.weight"} < set(one)
    assert "x" not in one
    assert "3 tensors" in repr(one)


def test_masks_of_two_bases_do_not_mix() -> None:
    one = drawn(1)
    name = "b.up_proj.weight"
    other = Mask(one.bits, one.shapes, one.origins | {name: Origin("BF16", "f" * 32)}, "other")
    with pytest.raises(InputError, match=f"m1 and other are not of one base: .*{name}.*{'f' * 32}"):
        one | other
    fewer = Mask(
        {k: v for k, v in one.bits.items() if k != name},
        {k: v for k, v in one.shapes.items() if k != name},
        {k: v for k, v in one.origins.items() if k != name},
        "fewer",
    )
    with pytest.raises(InputError, match=f"{name} is in one of them alone"):
        fewer & one
    reshaped = Mask(one.bits, one.shapes | {name: (4, 4)}, one.origins, "reshaped")
    with pytest.raises(InputError, match=r"b.up_proj.weight has the shapes \(2, 8\) and \(4, 4\)"):
        one - reshaped
    with pytest.raises(TypeError):
        one | "safe"  # type: ignore[operator]


BASE = MemoryCheckpoint(tiny(layers=1))


@pytest.mark.parametrize(
    "rule",
    ["low_magnitude | ~principal(alpha=0.3)", "~(low_magnitude & principal) - random(density=0.5)",
     "principal ^ low_magnitude(alpha=0.7)"],
)  # fmt: skip
def test_a_joined_rule_is_the_masks_joined(rule: str) -> None:
    names = {
        "low_magnitude": build(BASE, "low_magnitude"),
        "principal": build(BASE, "principal"),
    }
    a, b = names["low_magnitude"], names["principal"]
    expected = {
        "low_magnitude | ~principal(alpha=0.3)": a | ~build(BASE, "principal", alpha=0.3),
        "~(low_magnitude & principal) - random(density=0.5)": ~(a & b)
        - build(BASE, "random", density=0.5),
        "principal ^ low_magnitude(alpha=0.7)": b ^ build(BASE, "low_magnitude", alpha=0.7),
    }[rule]
    found = build(BASE, rule)
    assert found == expected
    assert build(BASE, found.rule) == found
    assert build(BASE, expected.rule) == found  # the rule of joined masks can be read as well


calls = st.sampled_from(
    ["principal", "all", "none", "low_magnitude(threshold='mean')", "safe(alpha=0.25, rank=3)",
     "random(density=0.1, seed=7)", "random(like=~principal | all)", "file(path='a b\\'\\n.mask')",
     "magnitude_random(like=random(like=safe))", "lift(budget_rank=4)"],
)  # fmt: skip
rules = st.recursive(
    calls,
    lambda inner: st.one_of(
        inner.map(lambda a: f"~({a})"),
        st.tuples(inner, st.sampled_from("|&-^"), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        inner.map(lambda a: f"random(like={a}, seed=2)"),
    ),
    max_leaves=8,
)


@given(rules)
def test_a_rule_survives_being_written_and_read(text: str) -> None:
    node = parse(text)
    assert parse(str(node)) == node
    done = filled(node, {})
    assert filled(parse(str(done)), {}) == done


def test_options_go_to_the_rules_that_take_them_and_leave_it_open() -> None:
    def told(rule: str, **options: Any) -> str:
        return str(filled(parse(rule), options))

    assert told("safe", alpha=0.3, rank=4) == "safe(alpha=0.3, rank=4)"
    assert told("safe(alpha=0.2) | principal", alpha=0.3) == (
        "safe(alpha=0.2) | principal(alpha=0.3)"
    )
    assert told("low_magnitude | ~principal", threshold="mean", alpha=0.3) == (
        "low_magnitude(threshold='mean') | ~principal(alpha=0.3)"
    )
    assert told("random(like=safe)", alpha=0.1) == "random(like=safe(alpha=0.1), seed=0)"
    assert told("random(like=safe) | random(density=0.5)", density=0.2) == (
        "random(like=safe(alpha=0.5), seed=0) | random(density=0.5, seed=0)"
    )
    assert told("low_magnitude(alpha=0.5)", threshold="mean") == "low_magnitude(alpha=0.5)"
    assert told("random", like=parse("all"), seed=4) == "random(like=all, seed=4)"


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("all", {"alpha": 0.5}, "none of its rules has an option alpha"),
        ("random", {}, "random needs density=SHARE or like=RULE"),
        ("random(density=0.1, like=all)", {}, "density or like, not both"),
        ("random", {"density": 0.1, "like": parse("all")}, "density or like, not both"),
        ("low_magnitude(alpha=0.1, threshold='mean')", {}, "threshold or alpha, not both"),
        ("lift", {}, r"lift needs budget_rank: write lift\(budget_rank=...\)"),
        ("magnitude_random", {}, "magnitude_random needs like"),
        ("subnetwork", {}, "subnetwork needs tuned"),
        ("principal", {"alpha": 1.5}, "alpha=1.5: a share from 0 to 1"),
        ("principal", {"alpha": float("nan")}, "alpha=nan: a share from 0 to 1"),
        ("principal", {"rank": 0}, "rank=0: a whole number from 1"),
        ("principal", {"rank": 2.0}, "rank=2.0: a whole number from 1"),
        ("safe", {"threshold": "median"}, "threshold='median': 'mean' is needed"),
    ],
)
def test_options_that_cannot_be_are_refused(rule: str, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        filled(parse(rule), options)


HOSTILE = {
    "": "cannot be read",
    "   ": "cannot be read",
    "\0": "cannot be read",
    "nothing": "no rule 'nothing'; choose among principal",
    "__import__('os').system('true')": "is no rule",
    "__import__": "no rule",
    "principal()()": "is no rule",
    "principal.__class__": "is no rule",
    "principal[0]": "is no rule",
    "principal(0.5)": "is no rule",
    "principal(*[1])": "is no rule",
    "principal(**{'alpha': 1})": "no option",
    "principal(beta=1)": "no option 'beta'; it takes alpha, rank",
    "all(alpha=1)": "it takes no options",
    "principal(alpha=open('x'))": "no number and no text",
    "principal(alpha=0.1, alpha=0.2)": "alpha twice",
    "principal(alpha=f'{1}')": "no number and no text",
    "file(path=f'{open}')": "no number and no text",
    "file(path='')": "a path in quotes",
    "file(path=b'x')": "a path in quotes",
    "principal(alpha=True)": "a share",
    "principal(alpha=1j)": "a share",
    "principal(alpha=[1])": "a share",
    "principal(alpha={[]: 1})": "no number and no text",
    "random(like='all')": "is no rule",
    "random(like=0.5)": "is no rule",
    "(lambda: all)": "is no rule",
    "all if all else none": "is no rule",
    "[all for x in y]": "is no rule",
    "all and none": "is no rule",
    "not all": "is no rule",
    "-all": "is no rule",
    "all + none": "is no rule",
    "all < none": "is no rule",
    "(all := none)": "is no rule",
    "await all": "is no rule",
    "yield": "cannot be read",
    "x = all": "cannot be read",
    "all; none": "cannot be read",
    "import os": "cannot be read",
    "1": "is no rule",
    "...": "is no rule",
    "random(seed=" + "9" * 5000 + ", density=0.1)": "cannot be read",
    "random(seed=0x" + "f" * 5000 + ", density=0.1)": "too many digits",
    "random(density=1e999)": "a share",
    "(" * 3000 + "all" + ")" * 3000: "cannot be read",
    "~" * 9000 + "all": "cannot be read",
    "~" * 90 + "all": "nested more than 64 deep",
    "all|" * 2000 + "all": "cannot be read|nested",
    "all|" * 400 + "all": "nested more than 64 deep",
    "random(like=" * 70 + "all" + ")" * 70: "nested more than 64 deep",
    "principal(alpha=" + "[" * 190 + "]" * 190 + ")": "nested more than 64 deep",
    "a" * 10_001: "has 10001 characters, more than 10000",
    "all # " + "x" * 20_000: "characters",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_a_text_that_means_harm_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=HOSTILE[text]) as error:
        filled(parse(text), {})
    assert time.process_time() - start < 1
    assert len(str(error.value)) < 800


def test_reading_a_rule_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse(r"file(path='\d')")


@settings(max_examples=300)
@given(st.text(alphabet="alnowprincipal|&-^~()=,.'0123456789 \n\t*:[]{}\\", max_size=60))
def test_any_text_is_a_rule_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        filled(parse(text), {})
