"""The tables of the page of pairs: all pairs, sortable, and their means by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from offaxis.report.headline import digits, state
from offaxis.report.pairs_columns import EXCESS, GROUPED, MEASURES, Measure, Own, verdict
from offaxis.report.tables import Reasons
from offaxis.report.text import DASH, count, escape, interval, is_number, signed

__all__ = ["group_tables", "pair_table"]

Pair = Mapping[str, Any]

_READINGS = {
    "below": "less than the null, beyond the interval",
    "above": "more than the null, beyond the interval",
    "same": "the interval holds zero: not told apart from the null",
    "unknown": "no interval: one matrix alone",
}
_UNDEFINED = "not defined for any tensor of this pair"
_EMPTY = "empty in the manifest"
_LONG = 26
"""Characters beyond which a cell of text is broken into lines."""


def pair_table(pairs: Sequence[Pair], own: Sequence[Own], why: Reasons) -> str:
    """One row a pair in the manifest's order; each header is a button that sorts."""
    places = digits(pairs)
    rows = []
    for place, pair in enumerate(pairs):
        first, *others = own
        cells = (
            f'<th scope="row" data-sort="{escape(first.full[place])}"{_tip(first, place)}>'
            f"{escape(first.cells[place])}</th>"
        )
        cells += "".join(_own_cell(column, place) for column in others)
        cells += "".join(_measure_cell(pair, measure, places, why) for measure in MEASURES)
        evidence = " ".join(map(str, (pair.get("verdict") or {}).get("evidence") or []))
        words = escape(verdict(pair))
        cells += (
            f'<td class="words" data-sort="{words}" title="{escape(evidence, 800)}">{words}</td>'
        )
        rows.append(f'<tr data-place="{place}">{cells}</tr>')
    return (
        '<div class="scroller" tabindex="0" role="region" aria-labelledby="pairs-caption">'
        '<table id="pairs"><caption id="pairs-caption" class="unseen">All pairs</caption>'
        f"<thead>{_heads(own)}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _tip(column: Own, place: int) -> str:
    full = column.full[place]
    return f' title="{escape(full, 500)}"' if full != column.cells[place] else ""


def _own_cell(column: Own, place: int) -> str:
    shown = column.cells[place]
    if shown is None:
        return f"<td>{_dash(_EMPTY)}</td>"
    known = column.numbers
    sort = f"{known[place]!r}" if known is not None else escape(column.full[place])
    words = "words long" if len(shown) > _LONG else "words"
    kind = "" if known is not None else f' class="{words}"'
    return f'<td{kind} data-sort="{sort}"{_tip(column, place)}>{escape(shown)}</td>'


def _measure_cell(pair: Pair, measure: Measure, places: int, why: Reasons) -> str:
    """The number with its interval beneath; a difference is bold where zero lies outside."""
    value = pair.get(measure.key)
    if value is None or not is_number(value):
        return f"<td>{_dash(_reason(pair, measure.key, why))}</td>"
    bounds = (pair.get("intervals") or {}).get(measure.key)
    if not measure.key.endswith(EXCESS):
        ends = [measure.show(end) for end in bounds or [] if is_number(end)]
        tip = (
            f' title="95 % interval over matrices: {ends[0]} to {ends[1]}"'
            if len(ends) == 2
            else ""
        )
        return f'<td data-sort="{float(value)!r}"{tip}>{measure.show(value)}</td>'
    reading = state(pair, measure.key.removesuffix(EXCESS))
    small = interval(bounds, places) or "no interval"
    return (
        f'<td class="{reading}" data-sort="{float(value)!r}" title="{_READINGS[reading]}">'
        f"{signed(value, places)}<small>{small}</small></td>"
    )


def _reason(pair: Pair, key: str, why: Reasons) -> str:
    """Why a number is not defined; a difference is not where either of its sides is not."""
    name = str(pair["name"])
    overlap = key.removesuffix(EXCESS)
    found = [why.get((name, key)), why.get((name, overlap))]
    found += [why.get((name, f"{overlap}_magnitude_null"))] if key.endswith(EXCESS) else []
    return next((text for text in found if text), _UNDEFINED)


def _dash(reason: str) -> str:
    words = escape(reason)
    return f'<span class="none" role="img" title="{words}" aria-label="{words}">{DASH}</span>'


def _heads(own: Sequence[Own]) -> str:
    """Two rows: families of measures, then one button a column."""
    columns: list[tuple[str, str, bool]] = [
        ("", "Pair" if column.key == "name" else column.key, column.numbers is not None)
        for column in own
    ]
    columns += [(measure.family, measure.head, True) for measure in MEASURES]
    columns.append(("", "Step", False))
    families, buttons = "", ""
    for family, members in groupby(enumerate(columns), key=lambda item: item[1][0]):
        found = list(members)
        scope = ' scope="colgroup" class="family"' if family else ' aria-hidden="true"'
        tag = "th" if family else "td"
        families += f'<{tag} colspan="{len(found)}"{scope}>{escape(family)}</{tag}>'
        for place, (_, head, numeric) in found:
            kind = "number" if numeric else "text"
            words = f'<span class="unseen">{escape(family)}: </span>' if family else ""
            buttons += (
                f'<th scope="col" aria-sort="none" data-kind="{kind}"><button type="button" '
                f'data-column="{place}">{words}{escape(head)}</button></th>'
            )
    return f"<tr>{families}</tr><tr>{buttons}</tr>"


# ------------------------------------------------------------------------------------------- groups


def group_tables(pairs: Sequence[Pair], own: Sequence[Own]) -> list[tuple[str, str]]:
    """(column, table) for each column that groups the pairs, the user's before base and tuned."""
    able = [column for column in own if column.key != "name" and column.groups]
    able.sort(key=lambda column: column.key in ("base", "tuned"))
    return [(column.key, _group_table(pairs, column, place)) for place, column in enumerate(able)]


def _group_table(pairs: Sequence[Pair], column: Own, place: int) -> str:
    places = digits(pairs)
    rows = ""
    for value in column.values:
        members = [pair for pair, cell in zip(pairs, column.cells, strict=True) if cell == value]
        label = _dash(_EMPTY) if value is None else escape(value)
        rows += _group_row(label, members, places)
    total = _group_row("All pairs", pairs, places)
    heads = "".join(f'<th scope="col">{escape(_group_head(measure))}</th>' for measure in GROUPED)
    return (
        f'<div class="scroller grouped" id="group-{place}" tabindex="0" role="region" '
        f'aria-label="Means by {escape(column.key)}"><table>'
        f'<caption>By {escape(column.key)}</caption><thead><tr><th scope="col">'
        f'{escape(column.key)}</th><th scope="col">Pairs</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody><tfoot>{total}</tfoot></table></div>"
    )


def _group_head(measure: Measure) -> str:
    if measure.key.endswith(EXCESS):
        return f"{measure.family.removeprefix('Overlap with ').capitalize()}, minus null"
    return f"Rotation {measure.head.lower()},\u00a0°" if measure.family else measure.head


def _group_row(label: str, members: Sequence[Pair], places: int) -> str:
    cells = "".join(f"<td>{_spread(members, measure, places)}</td>" for measure in GROUPED)
    return f'<tr><th scope="row">{label}</th><td>{count(len(members))}</td>{cells}</tr>'


def _spread(members: Sequence[Pair], measure: Measure, places: int) -> str:
    """Mean over the pairs, least and greatest beneath, and over how many if not over all."""
    values = [pair[measure.key] for pair in members if is_number(pair.get(measure.key))]
    if not values:
        return _dash(_UNDEFINED if len(members) == 1 else "not defined for any pair of the group")

    def show(value: float) -> str:
        return signed(value, places) if measure.key.endswith(EXCESS) else measure.show(value)

    notes = [f"{show(min(values))} – {show(max(values))}"] if len(values) > 1 else []
    notes += [f"{len(values)} of {len(members)}"] if len(values) < len(members) else []
    return f"{show(_mean(values))}<small>{', '.join(notes)}</small>"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
