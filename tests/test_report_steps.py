"""What the page holds over steps and over runs: bands, nulls, heads, consensus, and its budget."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest

from offaxis.report import render
from offaxis.report.curves import LEVELS, consensus_curves, pack_signed
from offaxis.report.data import BUDGET, page_data
from offaxis.report.text import json_block, short_labels
from report_tables import SIZES, make

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

Tables = tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]


def data_of(tables: Tables) -> dict[str, Any]:
    measurements, curves, summary = tables
    labels = short_labels([pair["tuned"] for pair in summary["pairs"]])
    return page_data(measurements, curves, summary, labels, None)


def opened(packed: dict[str, Any]) -> np.ndarray:
    """What `pack` wrote."""
    codes = np.array([DIGITS.index(c) for c in packed["q"]]).reshape(-1, packed["d"])
    whole = codes @ (64 ** np.arange(packed["d"])[::-1])
    return np.asarray(whole * packed["max"] / (64 ** packed["d"] - 1))


def opened_signed(packed: dict[str, Any]) -> np.ndarray:
    return np.array([(DIGITS.index(c) - 31) * packed["reach"] / 31 for c in packed["q"]])


def test_points_hold_value_null_and_interval() -> None:
    tables = make(layers=1)
    found = data_of(tables)["series"]
    assert found["runs"] == ["rl", "sft"]
    assert [len(points) for points in found["points"]] == [3, 1]
    pair, point = tables[2]["pairs"][1], found["points"][0][1]
    assert point["step"] == 40
    expected = [pair["principal_overlap"], pair["principal_overlap_magnitude_null"]]
    expected += pair["intervals"]["principal_overlap"]
    assert point["v"]["principal_overlap"] == pytest.approx(expected, rel=1e-3)
    assert point["v"]["row_profile_correlation"] == [0.8, 0.6, 0.75, 0.85]
    assert point["v"]["column_profile_correlation"] == [0.5, 0.45, None, None]
    assert "principal_overlap_excess" in [one["name"] for one in found["measures"]]
    assert found["shown"] == [{"run": "rl", "at": [[0, 20], [1, 40], [2, 60]]}]


def test_a_single_step_is_no_series() -> None:
    assert data_of(make({"runs/a-20": 1e-4, "runs/b-20": 2e-4}, layers=1))["series"] is None
    html = render(*make({"runs/a-20": 1e-4}, layers=1))
    assert 'id="plot-series"' not in html
    assert 'id="plot-profile"' not in html


def test_long_series_are_thinned_and_keep_their_ends() -> None:
    sizes = {f"runs/{r}-{10 * i}": 1e-5 * i for r in "ab" for i in range(1, 201)}
    found = data_of(make(sizes, layers=1, width=32))
    assert [len(points) for points in found["series"]["points"]] == [120, 120]
    for points in found["series"]["points"]:
        assert (points[0]["step"], points[-1]["step"]) == (10, 2000)
    shown = [index for run in found["series"]["shown"] for index, _ in run["at"]]
    assert sorted(shown) == list(range(24))


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ({"query": 4, "key_value": 1, "dim": 32}, {"q_proj": 4, "k_proj": 1, "o_proj": 4}),
        ({"query": 8, "key_value": 1, "dim": 32}, {"k_proj": 1}),
        ({"query": "4", "dim": 32}, {}),
        (["4"], {}),
        (None, {}),
    ],
)
def test_heads_are_marked_where_the_shape_agrees(heads: object, expected: dict[str, int]) -> None:
    tables = make({"runs/a-20": 1e-4}, layers=1)
    tables[2]["run"]["heads"] = heads
    found = {one["role"]: one["heads"] for one in data_of(tables)["matrices"]["list"]}
    for role, marked in found.items():
        same = {"v_proj": "k_proj"}.get(role, role)
        if same in expected:
            side = "cols" if role == "o_proj" else "rows"
            assert marked == {"side": side, "count": expected[same]}
        else:
            assert marked is None


def test_signed_values_come_back_and_zero_stays_zero() -> None:
    values = np.array([-0.3, -0.1, 0.0, 0.05, 0.2])
    packed = pack_signed(values)
    np.testing.assert_allclose(opened_signed(packed), values, atol=0.51 * 0.3 / 31)
    assert opened_signed(packed)[2] == 0
    assert pack_signed(np.zeros(3)) == {"reach": 0.0, "q": "fff"}


@pytest.mark.parametrize("level", LEVELS)
def test_consensus_minus_gap_is_the_null(level: Any) -> None:
    generator = np.random.default_rng(0)
    seen, null = generator.uniform(0.2, 0.6, (2, 96, 96))
    stripes = {"consensus_rows": generator.random(4096), "consensus_columns": generator.random(512)}
    found = consensus_curves(
        {"consensus_picture": seen, "consensus_picture_magnitude_null": null, **stripes}, level
    )
    assert found is not None
    side = found["picture"]["h"]
    assert side == level.picture
    edges = np.linspace(0, 96, side + 1).astype(int)
    cells = [slice(a, b) for a, b in pairwise(edges)]
    expected = [null[one, two].mean() for one in cells for two in cells]
    got = opened(found["picture"]) - opened_signed(found["gap"])
    step = found["picture"]["max"] / 63 + found["gap"]["reach"] / 31
    np.testing.assert_allclose(got, expected, atol=step)
    rows = stripes["consensus_rows"].reshape(level.stripe, -1).mean(1)
    np.testing.assert_allclose(opened(found["rows"]), rows, atol=1e-3)


def test_small_matrices_get_blocks_of_several_entries() -> None:
    seen = np.random.default_rng(0).random((96, 32))
    profiles = {"consensus_rows": seen.mean(1)[:96], "consensus_columns": seen.mean(0)}
    found = consensus_curves({"consensus_picture": seen, **profiles}, LEVELS[0])
    assert found is not None
    assert (found["picture"]["h"], found["picture"]["w"]) == (24, 24)
    assert "gap" not in found
    assert consensus_curves(profiles, LEVELS[0]) is None


def test_tables_without_nulls_still_make_a_page() -> None:
    """As they were written before profiles had nulls."""
    measurements, curves, summary = make(layers=1)
    old = curves.filter(
        ~pl.col("curve").str.contains("magnitude_null|consensus_rows|consensus_columns")
    )
    names = pl.col("measure").str.contains("profile|stripes")
    summary["across"].pop("consensus_of")
    summary["run"].pop("heads")
    for row in summary["across"]["series"]:
        for name in [name for name in row if "profile" in name or name == "intervals"]:
            row.pop(name)
    html = render(measurements.filter(~names), old, summary)
    assert 'id="plot-consensus"' in html
    assert 'id="plot-consensus-gap"' not in html
    assert 'id="plot-series-row_profile_correlation"' not in html


def test_the_page_says_what_each_new_figure_shows() -> None:
    html = render(*make(SIZES, layers=1))
    for name in ("series", "profile", "profile-null", "consensus", "consensus-null"):
        found = re.search(rf'id="figure-{name}">.*?class="how">(.*?)</p>', html)
        assert found is not None
        assert found[1].count(".") == 1, "one sentence"


def test_a_thinned_page_uses_its_room() -> None:
    """Sizes are guessed before they are known; what is left over holds more matrices."""
    sizes = {f"runs/step-{100 * i}": 2e-4 * i for i in range(1, 6)}
    found = data_of(make(sizes, layers=24, width=256))
    assert len(found["matrices"]["list"]) < found["matrices"]["total"]
    size = len(json_block(found).encode())
    assert 0.9 * BUDGET < size <= BUDGET
    assert json.loads(json_block(found)) is not None
