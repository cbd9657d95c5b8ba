"""The page of pairs as text: what it shows, in which order, what it averages, what it escapes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import offaxis
from manifests import PAIRS, write_models, write_table
from offaxis.comparison import ManyComparison
from offaxis.report.pairs import render_pairs
from offaxis.report.pairs_columns import GROUPED, MEASURES, number, own_columns

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>\"\u202e%{x}$y"
)


class Table(HTMLParser):
    """Rows of cells of the tables of a page: (attributes, text, titles inside)."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[dict[str, Any]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._cell: dict[str, Any] | None = None
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self._cell = {**dict(attrs), "text": "", "titles": [], "tag": tag}
            self.tables[-1][-1].append(self._cell)
        elif self._cell is not None and "title" in dict(attrs):
            self._cell["titles"].append(dict(attrs)["title"])

    def handle_endtag(self, tag: str) -> None:
        self._script = False
        if tag in ("th", "td", "table"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        elif self._cell is not None:
            self._cell["text"] += data


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ManyComparison:
    home = write_models(tmp_path_factory.mktemp("home"))
    return offaxis.compare_manifest(write_table(home / "pairs.csv", PAIRS))


@pytest.fixture(scope="module")
def page(found: ManyComparison) -> Table:
    return Table(found.report())


# ------------------------------------------------------------------------------------ the columns


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1e-6", 1e-6), ("53.8%", 53.8), (" 3 ", 3.0), (7, 7.0), ("1_0", None), ("nan", None),
     ("inf", None), ("", None), ("GRPO", None), (True, None), (None, None)],
)  # fmt: skip
def test_numbers_are_told_from_words(cell: object, value: float | None) -> None:
    assert number(cell) == value


def test_what_can_be_done_with_a_column() -> None:
    frame = pl.DataFrame(
        {
            "base": ["x/b", "x/c", "x/b", "x/b"],
            "tuned": ["t", "u", "v", "w"],
            "name": ["1", "2", "3", "4"],
            "lr": ["1e-5", "9e-6", "1e-5", None],
            "algorithm": ["SFT", "RL", "RL", "DPO"],
            "note": ["p", "q", "r", "s"],
            "same": [1, 1, 1, 1],
            "none": [None, None, None, None],
            "gaps": ["1", "2", None, None],
        }
    )
    own = {column.key: column for column in own_columns(frame)}
    assert list(own) == ["name", "base", "tuned", "lr", "algorithm", "note", "same", "none", "gaps"]
    assert own["base"].cells == ("b", "c", "b", "b")
    assert own["base"].full[0] == "x/b"
    assert own["lr"].numbers == (1e-5, 9e-6, 1e-5, None)
    assert own["lr"].values == ["9e-6", "1e-5", None], "numbers by size, the empty one last"
    assert own["algorithm"].values == ["SFT", "RL", "DPO"], "words as they come"
    assert [key for key, column in own.items() if column.groups] == ["base", "lr", "algorithm"]
    assert own["name"].numbers is None, "a name is no number"
    same = frame.with_columns(name=pl.col("tuned"))
    assert [column.key for column in own_columns(same)][:3] == ["name", "base", "lr"]


# -------------------------------------------------------------------------------------- the table


def test_the_users_columns_stand_first(page: Table) -> None:
    families, heads, *rows = page.tables[0]
    words = [head["text"].rpartition(": ")[2] for head in heads]
    assert words == ["Pair", "base", "algorithm", "data", "lr", *(m.head for m in MEASURES), "Step"]
    assert [cell["text"] for cell in families if cell["text"]] == [
        "Rotation,\u00a0°", "Overlap with principal weights",
        "Overlap with low-magnitude weights",
    ]  # fmt: skip
    assert sum(int(cell["colspan"] or 1) for cell in families) == len(heads)
    assert {head["aria-sort"] for head in heads} == {"none"}
    buttons = [attrs for tag, attrs in page.tags if tag == "button" and "data-column" in attrs]
    assert [button["data-column"] for button in buttons] == [str(i) for i in range(len(heads))]
    shown = [tuple(cell["text"] for cell in row[:5]) for row in rows]
    assert shown == [
        (tuned.removeprefix("runs/"), base, algorithm, data, lr or "—")
        for base, tuned, algorithm, data, lr in PAIRS
    ]
    assert all(len(row) == len(heads) for row in rows)
    assert rows[3][4]["titles"] == ["empty in the manifest"]


def test_numbers_stand_beside_their_nulls(page: Table, found: ManyComparison) -> None:
    for row, pair in zip(page.tables[0][2:], found.summary()["pairs"], strict=True):
        cells = dict(zip([measure.key for measure in MEASURES], row[5:-1], strict=True))
        for key, cell in cells.items():
            value = pair[key]
            assert cell.get("data-sort") == (None if value is None else repr(float(value))), key
        assert row[-1]["text"] == {
            "small_step": "small step", "large_step": "large step",
            "identical": "identical to its base",
        }[pair["verdict"]["label"]]  # fmt: skip
        for kind in ("principal_overlap", "low_magnitude_overlap"):
            value, ends = pair[f"{kind}_excess"], pair["intervals"].get(f"{kind}_excess")
            cell = cells[f"{kind}_excess"]
            if value is None:
                assert (cell["text"], cell["titles"]) == ("—", ["no entry changed in bfloat16"])
                continue
            low, high = (f"{end:+.4f}".replace("-", "−") for end in ends)
            assert f"[{low}, {high}]" in cell["text"]
            beyond = ends[0] > 0 or ends[1] < 0
            assert (cell["class"] in ("above", "below")) == beyond
    planted = page.tables[0][2 + 3][5 + [m.key for m in MEASURES].index("principal_overlap_excess")]
    assert planted["class"] == "above"
    assert "more than the null" in str(planted["title"])


def test_every_dash_gives_its_reason(found: ManyComparison, tmp_path: Path) -> None:
    home = write_models(tmp_path / "home")
    path = write_table(home / "pairs.csv", PAIRS)
    table = Table(offaxis.compare_manifest(path, spectra="none").report()).tables[0]
    dashes = [cell for row in table[2:] for cell in row if cell["text"] == "—"]
    assert len(dashes) > 20
    assert all(len(cell["titles"]) == 1 and cell["titles"][0] for cell in dashes)
    assert {title for cell in dashes for title in cell["titles"]} == {
        "not asked for", "no entry changed in bfloat16", "empty in the manifest",
    }  # fmt: skip


# ------------------------------------------------------------------------------------- the groups


def test_groups_hold_mean_least_and_greatest(page: Table, found: ManyComparison) -> None:
    captions = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("id", "") and
                str(attrs["id"]).startswith("group-")]  # fmt: skip
    assert captions == [f"Means by {key}" for key in ("algorithm", "data", "lr", "base")]
    heads, *rows = page.tables[1]
    assert len(heads) == 2 + len(GROUPED)
    names = [row[0]["text"] for row in rows]
    assert names == ["GRPO", "SFT", "DAPO", "All pairs"]
    frame = found.pairs
    for row in rows:
        value = row[0]["text"]
        members = frame if value == "All pairs" else frame.filter(pl.col("algorithm") == value)
        assert row[1]["text"] == str(members.height)
        for measure, cell in zip(GROUPED, row[2:], strict=True):
            values = members[measure.key].drop_nulls().to_numpy()
            notes = [" – ".join(_shown(measure, float(f(values))) for f in (np.min, np.max))]
            notes = notes if len(values) > 1 else []
            notes += [f"{len(values)} of {members.height}"] * (len(values) < members.height)
            assert cell["text"] == _shown(measure, float(np.mean(values))) + ", ".join(notes)
    assert [row[0]["text"] for row in page.tables[3]][1:] == ["1e-6", "1e-5", "2e-5", "—",
                                                             "All pairs"]  # fmt: skip


def _shown(measure: Any, value: float) -> str:
    if measure.key.endswith("_excess"):
        return f"{value:+.4f}".replace("-", "−")
    return str(measure.show(value))


def test_without_shared_values_there_is_no_group(tmp_path: Path) -> None:
    home = write_models(tmp_path / "home")
    path = write_table(home / "pairs.csv", [("one", "runs/a", "x"), ("two", "runs/b", "y")],
                       "base,tuned,note")  # fmt: skip
    text = offaxis.compare_manifest(path, spectra="none").report()
    assert 'id="groups"' not in text
    assert "choose-group" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)


# ---------------------------------------------------------------------------- the page as a whole


def test_the_headline_counts(found: ManyComparison) -> None:
    text = found.report()
    assert text.count(
        "5 pairs over 2 bases: 3 small steps, 1 large step and 1 identical to its base."
    )
    known = "against what weight magnitudes alone predict"
    assert (
        f"principal weights {known}: less in none, more in 1, not told apart in 3 and not " in text
    )
    assert re.search(rf"low-magnitude weights {known}: .* and not defined in 1 of 5 pairs", text)


def test_what_the_scatter_is_drawn_from(page: Table, found: ManyComparison) -> None:
    data = json.loads(page.scripts[0])
    axes = {axis["key"]: axis for axis in data["axes"]}
    assert axes["nss"]["values"] == found.pairs["nss"].to_list()
    low = axes["principal_overlap_excess"]["low"]
    assert low == found.pairs["principal_overlap_excess_low"].to_list()
    assert axes["own lr"]["values"] == [1e-6, 1e-5, 1e-6, None, 2e-5]
    assert "own algorithm" not in axes
    assert [one["key"] for one in data["colours"]] == ["algorithm", "data", "lr", "base"]
    assert len(data["names"]) == len(PAIRS)


def test_only_the_pages_own_scripts_run(page: Table) -> None:
    (policy,) = (attrs["content"] or "" for tag, attrs in page.tags
                 if attrs.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert "default-src 'none'" in policy
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(page.scripts) == 3
    assert not [attrs for _, attrs in page.tags if "src" in attrs]


@pytest.mark.parametrize("where", ["name", "cell", "column", "base", "path"])
def test_hostile_text_stays_text(found: ManyComparison, where: str) -> None:
    summary = json.loads(json.dumps(found.summary()))
    own = found.pairs.select(found.columns)
    measurements = found.measurements
    pair = summary["pairs"][0]
    if where == "name":
        pair["name"] = HOSTILE
        first = pl.col("tuned") == NAME
        measurements = measurements.with_columns(
            tuned=pl.when(first).then(pl.lit(HOSTILE)).otherwise("tuned")
        )
        own = own.with_columns(name=pl.Series([HOSTILE, *own["name"][1:]]))
    elif where == "cell":
        own = own.with_columns(algorithm=pl.Series([HOSTILE, *own["algorithm"][1:]]))
    elif where == "column":
        own = own.rename({"algorithm": HOSTILE})
    elif where == "base":
        own = own.with_columns(base=pl.Series([f"{HOSTILE}/x", *own["base"][1:]]))
    else:
        summary["base"] = HOSTILE
        summary["run"] = {HOSTILE: [HOSTILE]}
        pair["verdict"]["evidence"] = [HOSTILE]
    text = render_pairs(own, measurements, summary)
    before, after = Table(found.report()), Table(text)
    assert len(after.scripts) == len(before.scripts)
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in after.tags)
    assert "window.hacked=1</script>" not in text
    assert "\u202e" not in text
    json.loads(after.scripts[0])


NAME = PAIRS[0][1]
