"""The page of a prediction: what it shows of which record, and that no name can harm it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from models import read, write
from offaxis.report.drawing import SYMBOLS, Chart, ticks
from offaxis.report.predict import render_prediction, write_page
from offaxis.report.predict_tables import asked_horizon
from predict_runs import planted
from report_tables import HOSTILE
from test_predict_command import run

METHODS = ["stop", "scale", "linear", "relex", "alpharl"]


def band(method: str, above: float, upto: float | None, gain: float, part: str) -> dict[str, Any]:
    spread = {"relative_error": 0.2, "gain_over_stop": gain, "cosine": 0.6}
    ends = {f"{name}_{end}": spread[name] + way * 0.05
            for name in spread for end, way in (("least", -1), ("greatest", 1))}  # fmt: skip
    row = {"part": part, "method": method, "above": above, "upto": upto, "cases": 3, "origins": 2}
    return {**row, **spread, **ends}


def named(method: str, words: str) -> str:
    """`stop` is a name that the page knows; the others may be anything."""
    return method if method == "stop" else f"{method}{words}"


def make(words: str = "", **changes: Any) -> dict[str, Any]:
    """The record of a prediction with an assessment; `words` is put into all that is text."""
    summary = [
        band(named(method, words), above, upto, gain, part)
        for part in ("all", "matrices", "rest")
        for above, upto in ((1.0, 1.25), (1.25, 1.5), (5.0, None))
        for method, gain in zip(METHODS, (0.0, 0.2, 0.1, -0.3, -4.0), strict=True)
    ]
    drawn = [[float(s), 0.5 + s / 300, 0.45 + s / 300, 0.55 + s / 300] for s in range(0, 91, 5)]
    told = {
        "schema": 1,
        "method": {"name": f"relex{words}", "options": {"rank": 1}},
        "at": 90.0,
        "base": f"models/base{words}",
        "base_score": 0.5,
        "checkpoints": [
            {"name": f"run{words}/checkpoint-{step}", "step": float(step),
             "score": 0.5 + step / 300, "relative_update_norm": step * 1e-4}
            for step in (20, 40, 60)
        ],
        "norms": {"base_norm": 75.0, "step_norms": [0.1, 0.2, 0.15], "update_norms": [1, 2, 3]},
        "facts": {"over_last": 1.25, "moved_on": 0.5, f"odd{words}_mean": 0.125},
        "dtypes": {f"F32{words}": 796032},
        "notes": [f"a note{words}"],
        "backtest": {"methods": [named(one, words) for one in METHODS], "rows": [],
                     "refused": [f"alpharl from step 20{words}"], "summary": summary},
        "curve": {"kind": "saturating", "steps": [0, 20], "scores": [0.5, 0.56], "drawn": drawn,
                  "expected": [0.8, 0.75, 0.85], "notes": [f"error on 3 scores{words}"]},
        "advice": {"verdict": "extrapolate", "method": f"relex{words}", "certain": True,
                   "headline": f"Extrapolate, with relex{words}.", "at": 90.0,
                   "reasons": [{"text": f"with relex, closer{words}", "numbers": {}}],
                   "wanted": [f"a validation score{words}"],
                   "candidates": {f"scale{words}": {"score": 0.81, "gain": 0.02, "low": -0.01,
                                                    "high": 0.05, "n": 200, "paired": True}}},
        "versions": {"offaxis": f"0{words}"},
    }  # fmt: skip
    return {**told, **changes}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in make().items() if key not in keys}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.words, self._off = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._off = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._off = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self._off else data


def test_the_recommendation_comes_first_and_its_grounds_follow() -> None:
    page = Page(render_prediction(make())).words
    places = [
        page.index(words)
        for words in (
            "Extrapolate, with relex.",
            "With relex, closer.",
            "A validation score.",
            "step 90 is expected to score 0.800, 95 % interval 0.750 to 0.850",
            "Predictions on the validation set",
            "Error on 3 scores.",
            "Errors on checkpoints that were not seen",
            "1.25 – 1.5×",
            "Matrices alone",
            "By relex",
            "Base and checkpoints",
            "Alpharl from step 20.",
            "Gain over stopping",
        )
    ]
    assert places[:-1] == sorted(places[:-1])
    assert "recommended" not in page[: places[1]], "the page's own model is the one to take"


@pytest.mark.parametrize(
    ("advice", "words"),
    [
        ({"verdict": "extrapolate", "method": "scale"}, "predicted by relex; scale is recommended"),
        ({"verdict": "train on", "method": None}, "training on is recommended"),
        ({"verdict": "stop", "method": None}, "stopping is recommended"),
    ],
)
def test_another_recommendation_than_the_model_is_said(advice: dict[str, Any], words: str) -> None:
    told = make()
    page = Page(render_prediction({**told, "advice": {**told["advice"], **advice}})).words
    assert words in page


def test_every_number_of_the_tables_is_the_records() -> None:
    page = Page(render_prediction(make())).words
    for number in ("−30.0", "−35.0", "0.200", "0.150", "796 032".replace(" ", "\u202f"), "1.25",
                   "0.125", "6.00×10⁻³", "1.33×10⁻³", "0.700", "2 origins"):  # fmt: skip
        assert number in page, number


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (without("backtest", "curve", "advice"), "nothing is recommended"),
        (without("facts", "norms", "notes", "dtypes", "versions", "base_score"), "Extrapolate"),
        (make(at=None), "prediction by relex"),
        (make(backtest={"methods": [], "refused": [], "rows": [], "summary": []}), "held back"),
        (make(curve={"kind": "undefined", "drawn": [], "expected": [None] * 3, "notes": []}),
         "too few for a curve"),
        (make(checkpoints=[{"name": "a", "step": None, "score": None}], base_score=None,
              norms={}), "no scores of the checkpoints"),
    ],
    ids=["not assessed", "bare", "no step", "nothing held back", "no curve", "nothing known"],
)  # fmt: skip
def test_what_is_missing_is_said_and_breaks_nothing(told: dict[str, Any], words: str) -> None:
    page = render_prediction(told)
    assert words.lower() in Page(page).words.lower()
    assert "None" not in Page(page).words
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", Page(page).words.lower())


def test_hostile_text_stays_text() -> None:
    plain, hostile = Page(render_prediction(make())), render_prediction(make(HOSTILE))
    page = Page(hostile)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
    assert "hacked" in page.words, "it is shown"
    bare = re.sub(r"[\n\r\t]", "", hostile)
    assert all(one.isprintable() or one in "\u00a0\u202f" for one in bare)


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone() -> None:
    text = render_prediction(make())
    assert "default-src 'none'; script-src 'sha256-" in text
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    assert text.count("<script") == 1


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    write_page(tmp_path / "one.html", told=make())
    assert (tmp_path / "one.html").read_text(encoding="utf-8") == render_prediction(make())


def test_the_shaded_rows_are_those_asked_for() -> None:
    assert asked_horizon(make()) == 1.5
    page = Page(render_prediction(make()))
    assert page.tags.count(("tr", {"class": "asked"})) == 5 * 3
    assert asked_horizon(make(checkpoints=[])) is None
    far = Page(render_prediction(make(at=900.0, advice={**make()["advice"], "at": 900.0})))
    assert far.tags.count(("tr", {"class": "asked"})) == 5 * 3


@pytest.mark.parametrize(
    ("low", "high", "most", "found"),
    [
        (0, 90, 8, [0, 20, 40, 60, 80]),
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.43, 0.87, 5, [0.5, 0.6, 0.7, 0.8]),
        (-0.65, 0.35, 6, [-0.6, -0.4, -0.2, 0, 0.2]),
        (0, 1e-3, 4, [0, 0.00025, 0.0005, 0.00075, 0.001]),
        (3, 3, 5, [3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, most: int, found: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(found)


def test_a_chart_keeps_its_marks_inside() -> None:
    chart = Chart(360, 300, (0.0, 10.0), (0.0, 1.0), "x")
    for place in range(2 * len(SYMBOLS)):
        chart.dot(float(place % 11), (-5.0, 0.5, 7.0)[place % 3], place, f"<b>{place}")
    numbers = re.findall(r"(?:c[xy]=\"|points=\"|[ ,])(-?[\d.]+)", chart.svg())
    assert all(0 <= float(one) <= 360 for one in numbers)
    assert "<b>" not in chart.svg()


def test_one_point_in_a_flat_chart_divides_by_nothing() -> None:
    chart = Chart(100, 100, (5.0, 5.0), (1.0, 1.0), "x")
    chart.dot(5.0, 1.0, 0, "only")
    assert "nan" not in chart.svg()


# -------------------------------------------------------------------------------------- the command


def test_the_command_writes_the_page_and_says_the_recommendation(tmp_path: Path) -> None:
    odd = tmp_path / "<img src=x onerror=hacked()>"
    made = planted(odd, steps=(10, 20, 30, 40))
    (tmp_path / "s.json").write_text(json.dumps({"0": 0.4, "10": 0.5, "20": 0.58, "40": 0.7}))
    done = run("linear", made.base, *made.checkpoints, "--at", 60, "--scores", tmp_path / "s.json",
               "--out", tmp_path / "out")  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    headline = record["advice"]["headline"]
    assert f"recommendation: {headline}" in done.out
    assert len(record["backtest"]["rows"]) > 10
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert headline in Page(page).words
    assert "<img" not in page
    assert "with scale, predictions came" in done.out


def test_a_factor_is_a_horizon(tmp_path: Path) -> None:
    made = planted(tmp_path, steps=(10, 20, 30, 40))
    done = run("scale", made.base, *made.checkpoints, "--factor", 1.5, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "o" / "predict.json").read_text())
    assert (record["at"], record["advice"]["at"]) == (None, 60.0)
    assert record["advice"]["verdict"] == "extrapolate"


@pytest.mark.parametrize("options", [["--no-backtest"], []], ids=["asked away", "one checkpoint"])
def test_no_page_where_nothing_was_tried(options: list[str], tmp_path: Path) -> None:
    made = planted(tmp_path)
    places = made.checkpoints if options else made.checkpoints[-1:]
    out = tmp_path / "out"
    done = run("scale", made.base, *places, "--at", 80, "--out", out, *options)
    assert done.code == 0, done.err
    assert "recommendation" not in done.out
    assert not (out / "report.html").exists()
    assert not {"backtest", "curve", "advice"} & set(json.loads((out / "predict.json").read_text()))


def test_a_bad_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    made = planted(tmp_path, steps=(10, 20))
    state = read(made.checkpoints[1])
    state["model.norm.weight"][0] = float("inf")
    place = write(tmp_path / "checkpoint-30", state)
    done = run("linear", made.base, *made.checkpoints, place, "--at", 60, "--out", tmp_path / "o")
    assert done.code == 1
    assert "checkpoint-30" in done.err
    assert not (tmp_path / "o").exists()
