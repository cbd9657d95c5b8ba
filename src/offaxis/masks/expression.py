"""Rules as text: `low_magnitude(threshold='mean') | ~principal(alpha=0.3)`.

Names of rules, with options in parentheses, joined by `|`, `&`, `-`, `^` and `~`; a rule may be an
option of another: `random(like=safe)`. It has the grammar of a Python expression and is never run.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from offaxis.errors import InputError
from offaxis.masks.mask import Bits, inverted
from offaxis.masks.rules import RULES
from offaxis.masks.side import Side

__all__ = ["Call", "Given", "Join", "Node", "Not", "filled", "parse"]

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
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"rule {text!r} cannot be read: {error}; write for example "
                         "low_magnitude | ~principal(alpha=0.3)") from error  # fmt: skip
    return _node(tree, text)


def _node(tree: ast.expr, text: str) -> Node:
    if isinstance(tree, ast.BinOp) and type(tree.op) in _JOINS:
        return Join(_JOINS[type(tree.op)], _node(tree.left, text), _node(tree.right, text))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Invert):
        return Not(_node(tree.operand, text))
    if isinstance(tree, ast.Name):
        return Call(_known(tree.id, text), {})
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
        name = _known(tree.func.id, text)
        return Call(name, {str(one.arg): _option(name, one, text) for one in tree.keywords})
    raise InputError(
        f"rule {text!r}: {ast.unparse(tree)!r} is no rule; join rules with | & - ^ ~, and give "
        "options by name, as in random(density=0.1)"
    )


def _known(name: str, text: str) -> str:
    if name not in RULES:
        raise InputError(f"rule {text!r}: no rule {name!r}; choose among {', '.join(RULES)}")
    return name


def _option(name: str, given: ast.keyword, text: str) -> Any:
    known = RULES[name].options
    if given.arg not in known:
        takes = ", ".join(known) or "no options"
        raise InputError(f"rule {text!r}: {name} has no option {given.arg!r}; it takes {takes}")
    if given.arg == "like":
        return _node(given.value, text)
    try:
        value = ast.literal_eval(given.value)
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"rule {text!r}: {given.arg}={ast.unparse(given.value)} is no number or text in quotes"
        ) from error
    return _checked(given.arg, value)


def _checked(option: str, value: Any) -> Any:
    """The value, if the option can have it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool)
    wanted, sound = {
        "alpha": ("a share from 0 to 1", number and 0 <= value <= 1),
        "density": ("a share from 0 to 1", number and 0 <= value <= 1),
        "rank": ("a whole number, at least 1", whole and value >= 1),
        "filter_rank": ("a whole number, at least 1", whole and value >= 1),
        "budget_rank": ("a whole number, at least 0", whole and value >= 0),
        "seed": ("a whole number", whole),
        "threshold": ("'mean'", value == "mean"),
        "tuned": ("a path in quotes", isinstance(value, str)),
        "path": ("a path in quotes", isinstance(value, str)),
    }[option]
    if value is None:
        return value
    if not sound or (number and not math.isfinite(value)):
        raise InputError(f"{option}={value!r}: {wanted} is needed")
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
    checked = {n: v if isinstance(v, Node) else _checked(n, v) for n, v in given.items()}
    return _filled(node, checked)


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
        value = node.options.get(name, options.get(name, default))
        if isinstance(value, EllipsisType):
            raise InputError(f"rule {node.name} needs {name}: write {node.name}({name}=...)")
        inner = {key: one for key, one in options.items() if key != "like"}
        found[name] = _filled(value, inner) if isinstance(value, Node) else value
    return Call(node.name, found)
