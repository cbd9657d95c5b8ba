"""The report as text: what it says, what it escapes, what it leaves out, how large it is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import polars as pl
import pytest

from offaxis.report import render
from offaxis.report.curves import blocks, log_indices, pack, spread, stratified
from offaxis.report.headline import headline, state
from offaxis.report.text import clean, decimals, json_block, percent, short_labels, signed, small
from offaxis.table import Measurement, curves_frame, measurements_frame
from report_tables import (
    HOSTILE,
    SIZES,
    make,
    make_contrasts,
    make_empty,
    make_hostile,
    make_scores,
)


class Page(HTMLParser):
    """Elements, attributes, text, and the contents of each script of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._raw = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.words.append(data)

    @property
    def data(self) -> dict[str, Any]:
        block: dict[str, Any] = json.loads(self.scripts[0])
        return block


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(*make(), scores=make_scores(), contrasts=make_contrasts()))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (clean("a\nb\u202ec\x00"), "a\\u000ab\\u202ec\\u0000"),
        (clean("x" * 300, 11), "xxxxx…xxxxx"),
        (percent(0.70512), "70.5\u00a0%"),
        (percent(0.99996), "99.996\u00a0%"),
        (percent(1 - 1e-9), ">99.999\u00a0%"),
        (percent(1e-9), "<0.001\u00a0%"),
        (percent(1.0), "100.0\u00a0%"),
        (percent(None), "—"),
        (small(1.234e-4), "1.23×10⁻⁴"),
        (small(-0.5), "−0.500"),
        (small(0), "0"),
        (small(float("nan")), "—"),
        (signed(-0.00012), "−0.0001"),
        (decimals(0.00013), 4),
        (decimals(0.000013), 5),
        (json_block({"a": "</script>&\u2028"}), '{"a":"\\u003c/script\\u003e\\u0026\\u2028"}'),
        (short_labels(["runs/a/10", "runs/b/10/", "x"]), ["a/10", "b/10", "x"]),
        (short_labels(["runs/a", "runs/a"]), ["a", "a (2)"]),
    ],
)
def test_text(shown: object, expected: object) -> None:
    assert shown == expected


def test_thinning_keeps_ends_means_and_strata() -> None:
    assert log_indices(4096, 48)[0] == 0
    assert log_indices(4096, 48)[-1] == 4095
    assert log_indices(1, 48) == [0]
    values = np.random.default_rng(0).uniform(size=960)
    np.testing.assert_allclose(blocks(values, 96).mean(), values.mean())
    assert blocks(values, 2000) is values
    np.testing.assert_allclose(blocks(np.arange(7.0), 2), [1.0, 4.5])
    assert spread(10, 3) == [0, 4, 9]
    roles = ["q", "k", "v"] * 32
    chosen = stratified(roles, 9)
    assert sorted(roles[i] for i in chosen) == ["k"] * 3 + ["q"] * 3 + ["v"] * 3
    assert min(chosen) < 3
    assert max(chosen) >= 93
    assert stratified(roles, 1000) == list(range(96))


@pytest.mark.parametrize("digits", [1, 2])
def test_packed_values_come_back(digits: int) -> None:
    values = np.random.default_rng(0).uniform(0, 3e-4, 100)
    packed = pack(values, digits)
    codes = [
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".index(c)
        for c in packed["q"]
    ]
    whole = np.array(codes).reshape(-1, digits) @ (64 ** np.arange(digits)[::-1])
    step = packed["max"] / (64**digits - 1)
    np.testing.assert_allclose(whole * step, values, atol=0.51 * step)


def planted(low: float | None, high: float | None, label: str = "small_step") -> dict[str, Any]:
    middle = None if low is None or high is None else (low + high) / 2
    return {
        "tuned": "runs/rl",
        "principal_overlap": 0.47,
        "principal_overlap_magnitude_null": 0.475,
        "principal_overlap_excess": middle,
        "intervals": {} if low is None else {"principal_overlap_excess": [low, high]},
        "verdict": {"label": label, "evidence": [], "confounds": ["the data differ"]},
    }


@pytest.mark.parametrize(
    ("low", "high", "expected", "words"),
    [
        (-0.02, -0.01, "below", "overlaps the base's principal weights less than weight"),
        (0.01, 0.02, "above", "overlaps the base's principal weights more than weight"),
        (-0.01, 0.02, "same", "overlap with the base's principal weights cannot be told"),
        (None, None, "unknown", "cannot be judged here"),
    ],
)
def test_headline_says_what_the_interval_allows(
    low: float | None, high: float | None, expected: str, words: str
) -> None:
    pair = planted(low, high)
    found = headline({"base": "models/base", "pairs": [pair]}, ["rl"])
    assert state(pair, "principal_overlap") == expected
    assert words in found.lede
    assert found.title == "rl is a small step from base."
    assert "The data differ." in found.change


@pytest.mark.parametrize(
    ("labels", "title"),
    [
        (["large_step"] * 3, "All 3 checkpoints are large steps from base."),
        (["small_step", "identical"], "1 small step and 1 identical to the base, measured"),
        (["implausible_base"], "a cannot plausibly have been tuned from base."),
        ([], "No checkpoint was compared with base."),
    ],
)
def test_headline_names_the_step(labels: list[str], title: str) -> None:
    pairs = [planted(-0.1, 0.1, label) for label in labels]
    found = headline({"base": "base", "pairs": pairs}, ["a", "b", "c"][: len(pairs)])
    assert found.title.startswith(title)


def test_numbers_of_the_summary_are_on_the_page(page: Page) -> None:
    _, _, summary = make()
    for pair in summary["pairs"]:
        for name in ("principal_overlap", "low_magnitude_overlap_rounding_null"):
            assert f"{pair[name]:.4f}" in page.text
        low, high = pair["intervals"]["principal_overlap_excess"]
        places = decimals(min(_widths(summary)))
        assert f"[{signed(low, places)}, {signed(high, places)}]" in page.text
    for words in (
        "Do the runs differ?",
        "cannot tell",
        "Contrasts of two runs",
        "Scores",
        "tied",
        "At equal update norm the runs differ beyond their interval in 0 of 3 measures;",
        "in 3 at equal steps",
    ):
        assert words in page.text


def _widths(summary: dict[str, Any]) -> list[float]:
    names = ("principal_overlap_excess", "low_magnitude_overlap_excess")
    return [
        float(np.subtract(*pair["intervals"][name][::-1]))
        for pair in summary["pairs"]
        for name in names
    ]


def test_page_is_one_file_under_a_policy_that_runs_only_its_own_scripts(page: Page) -> None:
    assert len(page.scripts) == 3
    policy = next(a["content"] for t, a in page.tags if "http-equiv" in a) or ""
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    sources = [a for _, a in page.tags if "src" in a or str(a.get("href", "")).startswith("http")]
    assert sources == []


def test_every_figure_says_how_to_read_it_and_every_control_has_a_label(page: Page) -> None:
    assert sum(tag == "figure" for tag, _ in page.tags) == 21
    plots = [a for _, a in page.tags if a.get("class") == "plot"]
    assert len(plots) == 21
    assert all(len(str(a["aria-label"])) > 40 for a in plots)
    inside = 0
    for tag, _ in page.tags:
        inside = 1 if tag == "label" else inside
        assert tag != "select" or inside
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_hostile_names_stay_text() -> None:
    html = render(*make_hostile())
    found = Page(html)
    plain = Page(render(*make(dict.fromkeys(["runs/a-20"], 3e-4), layers=2)))
    assert len(found.scripts) == 3
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"sup", "ol"}
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    assert HOSTILE in found.text
    assert found.data["matrices"]["list"][0]["name"].startswith(HOSTILE)
    assert "\u202e" not in html


def test_what_is_not_defined_is_a_dash_with_its_reason() -> None:
    page = Page(render(*make_empty()))
    assert "no entry changed" in page.text
    results = page.text.split("Glossary of measures")[0]
    words = re.sub(r"(?i)(magnitude|rounding|its|than) null", "", results)
    assert not re.search(r"\b(nan|NaN|None|null|inf)\b", words)
    assert page.data["matrices"]["list"] == []


@pytest.mark.parametrize(
    "drop", ["intervals", "verdict", "principal_overlap", "relative_update_norm"]
)
def test_a_pair_may_lack_any_number(drop: str) -> None:
    measurements, curves, summary = make(layers=1)
    for pair in summary["pairs"]:
        pair[drop] = None
    assert "nan" not in Page(render(measurements, curves, summary)).text.lower().split()


def test_mismatched_tensors_are_listed() -> None:
    measurements, curves, summary = make(layers=1)
    rows = [
        Measurement("runs/rl-20", f"t{i}", None, "other", None, 8, 4, "status", None, status=status)
        for i, status in enumerate(["missing", "extra", "reshaped: (8, 4) against (9, 4)"])
    ]
    page = Page(render(pl.concat([measurements, measurements_frame(rows)]), curves, summary))
    for words in ("t0", "t1", "missing", "extra", "reshaped: (8, 4) against (9, 4)", "8 × 4"):
        assert words in page.text


def check_budget(html: str, checkpoints: int) -> Page:
    page = Page(html)
    assert len(html.encode()) <= 6_000_000
    assert len(page.scripts[0].encode()) <= 1_000_000
    assert len(page.data["checkpoints"]) == checkpoints
    return page


def test_a_7b_shaped_model_keeps_a_stratified_choice_and_says_so() -> None:
    sizes = {f"runs/step-{100 * i}": 2e-4 * i for i in range(1, 6)}
    page = check_budget(render(*make(sizes, layers=32, width=512)), 5)
    kept = page.data["matrices"]["list"]
    assert len(kept) >= 28
    assert f"curves and pictures are here for {len(kept)} of 224 matrices" in page.text
    for role in {one["role"] for one in kept}:
        layers = [one["layer"] for one in kept if one["role"] == role]
        assert min(layers) == 0
        assert max(layers) == 31
    assert len(page.data["points"]["names"]) == 224


@pytest.mark.slow
def test_full_width_curves_of_a_7b_shaped_model_fit() -> None:
    sizes = {f"runs/step-{100 * i}": 2e-4 * i for i in range(1, 6)}
    check_budget(render(*make(sizes, layers=32, width=4096)), 5)


def test_many_checkpoints_are_thinned_in_plots_and_whole_in_tables() -> None:
    sizes = {f"runs/step-{10 * i}": 1e-4 * i for i in range(1, 61)}
    page = check_budget(render(*make(sizes, layers=1, width=32)), 24)
    assert "The plots hold 24 of 60 checkpoints" in page.text
    assert all(f"step-{10 * i}" in page.text for i in range(1, 61))
    shown = [one["label"] for one in page.data["checkpoints"]]
    assert shown[0] == "step-10"
    assert shown[-1] == "step-600"


def test_experts_share_a_cell_and_the_scatter_is_thinned() -> None:
    _, _, summary = make({"runs/rl-20": 2e-4}, layers=1)
    names = ("unchanged_bf16", "principal_overlap", "principal_overlap_magnitude_null")
    rows = [
        Measurement("runs/rl-20", f"l{layer}.e{e}.up", layer, "up_proj", e, 8, 8, name, e / 100)
        for layer in range(8)
        for e in range(100)
        for name in names
    ]
    page = Page(render(measurements_frame(rows), curves_frame([]), summary))
    grid = page.data["grid"]
    assert grid["sizes"] == [100] * 8
    assert grid["values"]["unchanged_bf16"] == [[0.495] * 8]
    assert "The scatter shows 400 of 800 matrices." in page.text


def test_spectra_of_a_sample_come_first() -> None:
    measurements, curves, summary = make(layers=8, width=64)
    tensor = "model.layers.5.mlp.up_proj.weight"
    spectral = pl.col("curve").str.contains("singular|angles")
    some = curves.filter(~spectral | (pl.col("tensor") == tensor))
    many = pl.concat([some.with_columns(pl.lit(f"runs/c-{i}").alias("tuned")) for i in range(24)])
    summary["pairs"] = [dict(summary["pairs"][0], tuned=f"runs/c-{i}") for i in range(24)]
    summary["across"] = None
    more = pl.concat(
        [measurements.with_columns(pl.lit(f"runs/c-{i}").alias("tuned")) for i in range(24)]
    ).unique(["tuned", "tensor", "measure"], maintain_order=True)
    kept = Page(render(more, many, summary)).data["matrices"]
    assert kept["total"] == 56
    assert len(kept["list"]) < 56
    assert tensor in [one["name"] for one in kept["list"]]


def test_the_same_tables_give_the_same_page() -> None:
    tables = make(layers=1)
    assert render(*tables) == render(*tables)
    assert list(SIZES) == [pair["tuned"] for pair in tables[2]["pairs"]]
