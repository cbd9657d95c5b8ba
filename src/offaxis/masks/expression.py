"""Rules as text: `low_magnitude(threshold='mean') | ~principal(alpha=0.3)`.

Names of rules, with options in parentheses, joined by `|`, `&`, `-`, `^` and `~`; a rule may be an
option of another: `random(like=safe)`. It has the grammar of a Python expression and is never run.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from types import EllipsisType
from typing import Any

import numpy as np

from offaxis.errors import InputError
from offaxis.masks.mask import Bits, inverted
from offaxis.masks.rules import RULES
from offaxis.masks.side import Side

__all__ = ["Call", "Given", "Join", "Node", "Not", "filled", "parse"]

MOST_CHARACTERS, MOST_DEPTH, SEED_BITS = 10_000, 64, 64

_JOINS: Mapping[type[ast.operator], str] = {
    ast.BitOr: "|",
    ast.BitAnd: "&",
    ast.Sub: "-",
    ast.BitXor: "^",
}
_BITS: Mapping[str, Callable[[Bits, Bits], Bits]] = {
    "|": lambda a, b: a | b,
    "&": lambda a, b: a & b,
    "-": lambda a, b: a & ~b,
    "^": lambda a, b: a ^ b,
}


class Node:
    """A rule, or rules joined."""

    def bits(self, side: Side) -> Bits:
        """The packed mask of one matrix."""
        raise NotImplementedError

    def calls(self) -> Iterator[Call]:
        """Every rule in it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Call(Node):
    """One rule with its options."""

    name: str
    options: Mapping[str, Any]

    def bits(self, side: Side) -> Bits:
        given = {
            key: value.bits(side) if isinstance(value, Node) else value
            for key, value in self.options.items()
        }
        return RULES[self.name].bits(side, **given)

    def calls(self) -> Iterator[Call]:
        yield self
        for value in self.options.values():
            if isinstance(value, Node):
                yield from value.calls()

    def __str__(self) -> str:
        told = ", ".join(
            f"{key}={value if isinstance(value, Node) else repr(value)}"
            for key, value in self.options.items()
            if value is not None
        )
        return f"{self.name}({told})" if told else self.name


@dataclass(frozen=True)
class Given(Node):
    """A mask at hand, under the name that `Elsewhere.saved` knows; `rule` is what made it."""

    name: str
    rule: str

    def bits(self, side: Side) -> Bits:
        return side.elsewhere.saved(self.name, side.view)

    def calls(self) -> Iterator[Call]:
        yield from ()

    def __str__(self) -> str:
        return self.rule


@dataclass(frozen=True)
class Not(Node):
    """The complement."""

    of: Node

    def bits(self, side: Side) -> Bits:
        return inverted(self.of.bits(side), side.entries)

    def calls(self) -> Iterator[Call]:
        yield from self.of.calls()

    def __str__(self) -> str:
        return f"~{_wrapped(self.of)}"


@dataclass(frozen=True)
class Join(Node):
    """Two rules and what joins them."""

    symbol: str
    left: Node
    right: Node

    def bits(self, side: Side) -> Bits:
        return _BITS[self.symbol](self.left.bits(side), self.right.bits(side))

    def calls(self) -> Iterator[Call]:
        yield from self.left.calls()
        yield from self.right.calls()

    def __str__(self) -> str:
        return f"{_wrapped(self.left)} {self.symbol} {_wrapped(self.right)}"


def _wrapped(node: Node) -> str:
    return f"({node})" if isinstance(node, Join) else str(node)


def parse(text: str) -> Node:
    """The rule that `text` says. InputError that names what is wrong in it, and the rules."""
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"rule {text[:40]!r}... has {len(text)} characters, more than {MOST_CHARACTERS}; save "
            "parts of it as masks and join these: file(path='a.mask') | file(path='b.mask')"
        )
    try:
        with warnings.catch_warnings():  # of odd escapes in strings
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
        _check_depth(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"rule {text!r:.200} cannot be read: {error}; write for example "
                         "low_magnitude | ~principal(alpha=0.3)") from error  # fmt: skip
    return _node(tree, text)


def _check_depth(tree: ast.expr) -> None:
    """ValueError for nesting that the functions below, which call themselves, could not follow."""
    level: list[ast.AST] = [tree]
    for _ in range(MOST_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ValueError(f"it is nested more than {MOST_DEPTH} deep")


def _node(tree: ast.expr, text: str) -> Node:
    if isinstance(tree, ast.BinOp) and type(tree.op) in _JOINS:
        return Join(_JOINS[type(tree.op)], _node(tree.left, text), _node(tree.right, text))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Invert):
        return Not(_node(tree.operand, text))
    if isinstance(tree, ast.Name):
        return Call(_known(tree.id, text), {})
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
        return _call(_known(tree.func.id, text), tree.keywords, text)
    raise InputError(
        f"rule {text!r:.200}: {_said(tree, text)} is no rule; join rules with | & - ^ ~, and give "
        "options by name, as in random(density=0.1)"
    )


def _said(tree: ast.expr, text: str) -> str:
    """The part of the rule that `tree` was read from."""
    return repr((ast.get_source_segment(text.strip(), tree) or "?")[:80])


def _known(name: str, text: str) -> str:
    if name not in RULES:
        raise InputError(
            f"rule {text!r:.200}: no rule {name!r:.80}; choose among {', '.join(RULES)}"
        )
    return name


def _call(name: str, keywords: Sequence[ast.keyword], text: str) -> Call:
    known, options = RULES[name].options, dict[str, Any]()
    for one in keywords:
        if one.arg is None or one.arg not in known:
            takes = ", ".join(known) or "no options"
            said = "**" if one.arg is None else repr(one.arg)
            raise InputError(
                f"rule {text!r:.200}: {name} has no option {said:.80}; it takes {takes}"
            )
        if one.arg in options:
            raise InputError(f"rule {text!r:.200}: {name} is given {one.arg} twice; give it once")
        options[one.arg] = _option(one.arg, one.value, text)
    return Call(name, options)


def _option(option: str, given: ast.expr, text: str) -> Any:
    if option == "like":
        return _node(given, text)
    try:
        value = ast.literal_eval(given)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(
            f"rule {text!r:.200}: {option}={_said(given, text)} is no number and no text in quotes"
            f"; {option} is {_WANTED[option]}"
        ) from error
    return checked(option, value)


_SHARE, _SEED = "a share from 0 to 1", f"a whole number from 0 to 2^{SEED_BITS} - 1"
_WANTED = {
    "alpha": _SHARE,
    "density": _SHARE,
    "rank": "a whole number from 1",
    "filter_rank": "a whole number from 1",
    "budget_rank": "a whole number from 0",
    "seed": _SEED,
    "threshold": "'mean'",
    "tuned": "a path in quotes",
    "path": "a path in quotes",
    "like": "a rule",
}
_EITHER = {"random": ("density", "like"), "low_magnitude": ("threshold", "alpha")}
"""Options of which one leaves the other without effect."""
_LEAST = {"rank": 1, "filter_rank": 1, "budget_rank": 0, "seed": 0}


def checked(option: str, value: Any) -> Any:
    """The value, if the option can have it; None leaves it open. InputError otherwise."""
    if value is None:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PathLike):
        value = fspath(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if option in ("alpha", "density"):
        sound = (whole or isinstance(value, float)) and 0 <= value <= 1
    elif option in _LEAST:
        sound = whole and value >= _LEAST[option] and value.bit_length() <= SEED_BITS
    elif option == "threshold":
        sound = value == "mean"
    else:
        sound = isinstance(value, str) and value != ""
    if not sound:
        huge = whole and value.bit_length() > SEED_BITS
        told = "a number of too many digits" if huge else f"{value!r:.80}"
        raise InputError(f"{option}={told}: {_WANTED[option]} is needed")
    return float(value) if option in ("alpha", "density") else value


def filled(node: Node, options: Mapping[str, Any]) -> Node:
    """The same rule with every option set: as the text says, else as `options`, else by default.

    An option for `like` is a Node. InputError for an option that no rule in it takes, and for one
    that must be given and is not.
    """
    takes = {name for call in node.calls() for name in RULES[call.name].options}
    for name, value in options.items():
        if value is not None and name not in takes:
            raise InputError(f"rule {node}: none of its rules has an option {name}; leave it out")
    given = {name: value for name, value in options.items() if value is not None}
    done = {n: v if isinstance(v, Node) else checked(n, v) for n, v in given.items()}
    return _filled(node, done)


def _filled(node: Node, options: Mapping[str, Any]) -> Node:
    if isinstance(node, Given):
        return node
    if isinstance(node, Not):
        return Not(_filled(node.of, options))
    if isinstance(node, Join):
        return Join(node.symbol, _filled(node.left, options), _filled(node.right, options))
    assert isinstance(node, Call)
    found: dict[str, Any] = {}
    for name, default in RULES[node.name].options.items():
        said = (node.options.get(name), options.get(name), default)
        value = next((one for one in said if one is not None), None)
        if isinstance(value, EllipsisType):
            raise InputError(
                f"rule {node.name} needs {name}: write {node.name}({name}=...), where {name} is "
                f"{_WANTED[name]}"
            )
        inner = {key: one for key, one in options.items() if key != "like"}
        found[name] = _filled(value, inner) if isinstance(value, Node) else value
    return Call(node.name, _settled(node, found))


def _settled(node: Call, found: dict[str, Any]) -> dict[str, Any]:
    """The options without those that another one leaves without effect. InputError for a clash."""
    if node.name == "random" and found["density"] is None and found["like"] is None:
        raise InputError(
            "rule random needs density=SHARE or like=RULE, which say how many entries to draw"
        )
    one, other = _EITHER.get(node.name, ("", ""))
    if found.get(one) is None or found.get(other) is None:
        return found
    told = [key for key in (one, other) if node.options.get(key) is not None]
    if len(told) == 2 or (not told and node.name == "random"):
        raise InputError(
            f"rule {node}: {node.name} takes {one} or {other}, not both; leave one out"
        )
    return found | {(one if told == [other] else other): None}
