"""What `delta.py` prints and writes: Markdown tables, goals, and one Parquet table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from delta_bounds import Statistics
from delta_coder import CoderRow
from delta_pairs import Pair

DIGESTS, BARE, FILES = "memory, digests", "memory", "files"
SETTINGS = (DIGESTS, BARE, FILES)
_LARGE = 50e6  # bytes of a pair on which sizes and speeds are judged
_NEAR = 0.1  # how far a pair's changed share may be from the one a goal names


@dataclass
class Row:
    """The best of several runs of one method on one pair in one setting."""

    method: str
    setting: str
    bytes: int
    pack: float
    apply: float


@dataclass
class Result:
    """All about one pair."""

    pair: Pair
    stats: Statistics
    rows: list[Row] = field(default_factory=list)
    coder: list[CoderRow] = field(default_factory=list)

    def row(self, method: str, setting: str = FILES) -> Row | None:
        return next((r for r in self.rows if (r.method, r.setting) == (method, setting)), None)

    def speed(self, seconds: float) -> float:
        """Bytes of the model a second."""
        return self.stats.model_bytes / seconds

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.MARKDOWN, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def wide() -> Console:
    """Tables come whole, whatever the terminal's width: they are pasted into pages."""
    return Console(width=250, highlight=False)


def print_pairs(console: Console, results: Sequence[Result]) -> None:
    table = _table("Pairs, and the bounds on them (bytes)", "pair", "model", "changed", "1 ULP",
                   "2", "3 and more", "zero order", "+ table", "given the exponent", "+ tables",
                   "of model")  # fmt: skip
    for one in results:
        s = one.stats
        shares = [f"{share:.1%}" for share in (s.changed, s.ulp1, s.ulp2, s.ulp3)]
        bounds = [f"{n:,.0f}" for bound in (s.zero_order, s.by_exponent)
                  for n in (bound.bytes, bound.bytes + bound.cells)]  # fmt: skip
        table.add_row(one.pair.name, f"{s.model_bytes:,}", *shares, *bounds,
                      f"{s.by_exponent.bytes / s.model_bytes:.2%}")  # fmt: skip
    console.print(table)


def _speeds(one: Result, row: Row | None) -> str:
    if row is None:
        return ""
    return " / ".join(f"{one.speed(seconds) / 1e9:.3g}" for seconds in (row.pack, row.apply))


def print_pair(console: Console, one: Result) -> None:
    """The methods on one pair. Bytes are those of the file."""
    title = f"{one.pair.name}: GB/s of model bytes, pack / apply"
    table = _table(title, "method", "bytes", "of model", "of the bound", "of bound and tables",
                   *SETTINGS)  # fmt: skip
    s = one.stats
    bound = s.by_exponent.bytes
    for method in one.methods:
        size = one.row(method).bytes  # type: ignore[union-attr]
        ratios = [size / b if b else float("inf") for b in (bound, bound + s.by_exponent.cells)]
        numbers = [f"{size:,}", f"{size / s.model_bytes:.2%}", *(f"{r:.3f}" for r in ratios)]
        speeds = [_speeds(one, one.row(method, setting)) for setting in SETTINGS]
        table.add_row(method, *numbers, *speeds)
    console.print(table)


def print_coder(console: Console, results: Sequence[Result]) -> None:
    table = _table("The entropy coder alone, one thread (MB/s of model bytes)", "pair", "coder",
                   "bytes", "encode", "decode")  # fmt: skip
    for one in results:
        for row in one.coder:
            speeds = [f"{one.speed(seconds) / 1e6:,.0f}" for seconds in (row.encode, row.decode)]
            table.add_row(one.pair.name, row.name, f"{row.bytes:,}", *speeds)
    console.print(table)


def parquet(results: Sequence[Result]) -> pl.DataFrame:
    """One row a pair, method and setting; the coders' setting is `coder`."""
    out = []
    for one in results:
        s = one.stats
        known = {"pair": one.pair.name, "kind": one.pair.kind, "model_bytes": s.model_bytes}
        known |= {key: getattr(s, key) for key in ("changed", "ulp1", "ulp2", "ulp3")}
        for key in ("zero_order", "by_exponent"):
            bound = getattr(s, key)
            known |= {f"{key}_bytes": bound.bytes, f"{key}_table_bytes": bound.cells}
        rows = [(r.method, r.setting, r.bytes, r.pack, r.apply) for r in one.rows]
        rows += [(r.name, "coder", r.bytes, r.encode, r.decode) for r in one.coder]
        for method, setting, size, pack, apply in rows:
            out.append(known | {"method": method, "setting": setting, "bytes": size,
                                "ratio": size / s.model_bytes, "pack_seconds": pack,
                                "apply_seconds": apply, "pack_mb_s": one.speed(pack) / 1e6,
                                "apply_mb_s": one.speed(apply) / 1e6})  # fmt: skip
    return pl.DataFrame(out)


@dataclass(frozen=True)
class Goal:
    """met is None where nothing was measured that could tell."""

    text: str
    measured: str
    met: bool | None


Found = Iterable[tuple[float, str]]


def _worst(text: str, found: Found, limit: float, unit: str, pick: Callable[..., object]) -> Goal:
    """Judge the worst of several numbers, each with the pair that it was measured on."""
    values = sorted(found)
    if not values:
        return Goal(text, "not measured", None)
    value, where = values[-1] if pick is max else values[0]
    met = value <= limit if pick is max else value >= limit
    shown = f"{value:,.0f}{unit}" if unit else f"{value:.3f}"
    return Goal(text, f"{shown} ({where}; worst of {len(values)})", met)


def _size(one: Result, method: str) -> int | None:
    row = one.row(method)
    return row.bytes if row else None


def _near(results: Sequence[Result], share: float, text: str, limit: float) -> Goal:
    """`small` against PULSE on the pair whose changed share is nearest to the one named."""
    sizes = [(abs(r.stats.changed - share), _size(r, "offaxis small"), _size(r, "PULSE-like"), r)
             for r in results]  # fmt: skip
    near = min(((d, a / b, r) for d, a, b, r in sizes if a and b and d <= _NEAR),
               key=lambda one: one[0], default=None)  # fmt: skip
    if near is None:
        return Goal(text, f"no pair within {_NEAR:.0%} of {share:.0%} changed", None)
    _, ratio, one = near
    pulse = _size(one, "PULSE-like") or 1
    where = f"{one.pair.name}, {one.stats.changed:.1%} changed"
    bound = f"the entropy given the exponent: {one.stats.by_exponent.bytes / pulse:.3f}"
    return Goal(text, f"{ratio:.3f} ({where}; {bound})", ratio <= limit)


def _speed_goals(results: Sequence[Result], method: str, limits: tuple[float, float],
                 text: str) -> list[Goal]:  # fmt: skip
    out = []
    for which, limit in zip(("pack", "apply"), limits, strict=True):
        found = [(r.speed(getattr(row, which)) / 1e6, r.pair.name) for r in results
                 if (row := r.row(method, DIGESTS))]  # fmt: skip
        goal = f"{method}: {which} ≥ {limit:,.0f} MB/s{text}"
        out.append(_worst(goal, found, limit, " MB/s", min))
    return out


def _bound_goals(results: Sequence[Result]) -> list[Goal]:
    alone, whole = [], []
    for one in results:
        bound, size = one.stats.by_exponent, _size(one, "offaxis small")
        if size is not None:
            alone.append((size / bound.bytes, one.pair.name))
            whole.append((size / (bound.bytes + bound.cells), one.pair.name))
    text = "small: ≤ 1.05 of the entropy given the exponent, ≥ 50 MB"
    return [
        _worst(text, alone, 1.05, "", max),
        _worst("the same, of that entropy and its tables", whole, 1.05, "", max),
    ]


def goals(results: Sequence[Result]) -> list[Goal]:
    """The issue's goals. Sizes are those of whole delta files; speeds, in memory with digests."""
    large = [one for one in results if one.stats.model_bytes >= _LARGE]
    changed = [one for one in large if one.stats.changed > 0]
    out = _bound_goals(changed)
    for kind in ("real", "generated"):
        own = [r for r in results if (r.pair.kind == "generated") == (kind == "generated")]
        out.append(_near(own, 0.3, f"small: about 1/4 of PULSE at 30 % ({kind}; ≤ 0.275)", 0.275))
        out.append(_near(own, 0.8, f"small: about 1/3 of PULSE at 80 % ({kind}; ≤ 0.367)", 0.367))
    out += _speed_goals(large, "offaxis small", (150, 150), ", ≥ 50 MB")
    for rival in ("PULSE-like", "zstd -3 --patch-from", "zstd -19 --patch-from"):
        found = [(a / b, r.pair.name) for r in results if r.stats.changed
                 and (a := _size(r, "offaxis fast")) and (b := _size(r, rival))]  # fmt: skip
        out.append(_worst(f"fast: below 1 of {rival}, every pair", found, 1.0, "", max))
    sparse = [one for one in large if one.stats.changed <= 0.105]
    return out + _speed_goals(sparse, "offaxis fast", (1000, 2000), ", ≤ 10 % changed, ≥ 50 MB")


def print_goals(console: Console, results: Sequence[Result]) -> None:
    table = _table("Goals", "goal", "measured", "met")
    words = {True: "yes", False: "NO", None: "-"}
    for goal in goals(results):
        table.add_row(goal.text, goal.measured, words[goal.met])
    console.print(table)
