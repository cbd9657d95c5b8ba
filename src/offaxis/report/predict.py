"""The page of a prediction: the recommendation first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from offaxis.report.document import asset, policy
from offaxis.report.figures import section
from offaxis.report.predict_figures import accuracy, gains
from offaxis.report.predict_tables import error_tables, facts_table, series_table
from offaxis.report.tables import run_block
from offaxis.report.text import escape, is_number, plain, signed

__all__ = ["render_prediction", "write_page"]

Told = Mapping[str, Any]

_READING = (
    (
        "Errors on unseen checkpoints",
        "For every origin, the checkpoints up to it were all that a method saw; it was then asked "
        "for each later one, which training had really reached.",
    ),
    (
        "Relative error",
        "‖prediction − checkpoint‖ over ‖checkpoint − base‖, all parameters together: 0 is exact, "
        "1 is as far off as the base.",
    ),
    (
        "Gain over stopping",
        "How much closer to the later weights the prediction came than the last checkpoint that "
        "the method saw: 100 % is exact, 0 no better than stopping, below 0 worse.",
    ),
    (
        "Cosine",
        "Between the predicted and the true move from the last checkpoint seen: 1 is the right "
        "direction, 0 a direction that has nothing to do with it.",
    ),
    (
        "Horizon",
        "The target's step over the origin's: from step 20 to step 60 is 3 times ahead.",
    ),
    (
        "The curve of accuracy",
        "Fitted to the scores alone: a curve that saturates at 1 or below, a line with three "
        "scores. The shaded interval holds a new score with 95 % probability if the curve is of "
        "this kind; it says nothing about a collapse, or another seed.",
    ),
    (
        "The recommendation",
        "Weights that are close are not yet accurate, so a written prediction should be scored on "
        "a validation set beside the last checkpoint. scale (the last update times a factor) and "
        "linear (a line for each weight) are what any other method has to beat.",
    ),
    (
        "AlphaRL",
        "It puts one direction of the full update's length in place of each matrix's update, and "
        "leaves or freezes all else, so its weights are far off whatever it scores: only a "
        "validation score can speak for it.",
    ),
)


def write_page(path: str | Path, *, told: Told) -> None:
    """Write `render_prediction` of the record `told` to the file `path`."""
    Path(path).write_text(render_prediction(told), encoding="utf-8")


def render_prediction(told: Told) -> str:
    """The record of a prediction as one HTML document that needs nothing else, network included.

    told: what `predict.json` holds. Needed: `method` {name, options}, `at`, `base`, `checkpoints`
    [{name, step, score, relative_update_norm}]. Read where they are there: `base_score`, `norms`
    {step_norms, update_norms}, `facts`, `dtypes`, `notes`, `versions`, `chosen`, and of an
    assessment `backtest` {methods, refused, rows, summary}, `curve` {kind, steps, scores, drawn,
    expected, notes} and `advice` {verdict, headline, reasons, wanted, at, candidates}. Nothing is
    computed. All text is untrusted and escaped; a content security policy forbids every script that
    is not the page's own.
    """
    script = asset("predict.js")
    return Template(asset("predict.html")).substitute(
        policy=policy(script),
        style=asset("style.css"),
        what=escape(_what(told)),
        base=escape(told["base"]),
        headline=_headline(told),
        curve=section("curve", "Accuracy", _curve(told)),
        errors=section("errors", "Errors on checkpoints that were not seen", _errors(told)),
        prediction=facts_table(told),
        series=series_table(told),
        missing=_missing(told),
        reading=_reading(),
        run=run_block(_run(told)),
        script=script,
    )


def _what(told: Told) -> str:
    name = str(told["method"]["name"])
    at = told.get("at")
    return f"step {at:g} by {name}" if is_number(at) else f"prediction by {name}"


def _headline(told: Told) -> str:
    advice = told.get("advice")
    if not advice:
        words = "Nothing was tried on unseen checkpoints, so nothing is recommended."
        return f'<h1>{escape(_what(told))}</h1><p class="lede">{words}</p>'
    reasons = _list([one["text"] for one in advice.get("reasons") or []])
    wanted = _list(advice.get("wanted") or [])
    more = f'<p class="how">What would let this be said better:</p>{wanted}' if wanted else ""
    other = _other(told, advice)
    return f"<h1>{escape(advice['headline'], 400)}</h1>{other}{reasons}{more}"


def _other(told: Told, advice: Told) -> str:
    """That the model beside this page is not what is recommended, where it is not."""
    name, method = str(told["method"]["name"]), advice.get("method")
    if advice.get("verdict") == "extrapolate" and method == name:
        return ""
    which = f"{method} is" if method else "training on is" if _on(advice) else "stopping is"
    words = f"The model beside this page was predicted by {name}; {which} recommended."
    return f'<p class="notice">{escape(words, 500)}</p>'


def _on(advice: Told) -> bool:
    return advice.get("verdict") == "train on"


def _list(sentences: Sequence[Any]) -> str:
    items = "".join(f"<li>{escape(_sentence(str(text)), 1000)}</li>" for text in sentences)
    return f'<ul class="reasons">{items}</ul>' if items else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _curve(told: Told) -> str:
    """The picture of scores and curve; the reason where there is none."""
    curve = told.get("curve") or {}
    scored = [one for one in told["checkpoints"] if is_number(one.get("score"))]
    candidates = _candidates((told.get("advice") or {}).get("candidates") or {})
    if not scored and not is_number(told.get("base_score")):
        return candidates
    expected = curve.get("expected") or [None, None, None]
    words = ""
    if is_number(expected[0]) and is_number(told.get("at")):
        words = (
            f"Training on, step {told['at']:g} is expected to score {plain(expected[0], 3)}, 95 % "
            f"interval {plain(expected[1], 3)} to {plain(expected[2], 3)}. "
        )
    how = f"{words}Points are the scores given; the line is the {curve.get('kind', '')} curve."
    if not curve.get("drawn"):
        how = "Points are the scores given; there are too few for a curve."
    notes = _list(curve.get("notes") or [])
    return f'<p class="how">{escape(how, 600)}</p>{accuracy(told)}{candidates}{notes}'


def _candidates(found: Mapping[str, Told]) -> str:
    """Validation scores of written predictions."""
    if not found:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{plain(one["score"], 3)}</td>'
        f"<td>{signed(one['gain'], 3)}<small>{signed(one['low'], 3)} – {signed(one['high'], 3)}"
        f"</small></td><td>{escape(one['n'])}</td>"
        f"<td>{'paired' if one['paired'] else 'not paired'}</td></tr>"
        for name, one in found.items()
    )
    heads = ("Prediction by", "Score", "Against the last checkpoint", "Problems", "Interval")
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    return (
        '<div class="scroller" tabindex="0" role="region" aria-label="Validation scores"><table>'
        f"<caption>Predictions on the validation set</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _errors(told: Told) -> str:
    found = told.get("backtest")
    if not found or not found.get("summary"):
        return ""
    how = (
        "Gain over stopping by horizon: each bar reaches from the least to the greatest over "
        "origins and targets, its mark is the median. Above the line the prediction came closer to "
        "the later weights than the last checkpoint seen; below it, stopping was better."
    )
    return f'<p class="how">{how}</p>{gains(told)}{error_tables(told)}'


def _missing(told: Told) -> str:
    notes = [str(one) for one in told.get("notes") or []]
    notes += [str(one) for one in (told.get("backtest") or {}).get("refused") or []]
    if "backtest" not in told:
        notes.append("no method was tried on unseen checkpoints: fewer than two, or not asked for")
    elif not told["backtest"].get("summary"):
        notes.append("no checkpoint could be held back: there are too few")
    unscored = [str(one["name"]) for one in told["checkpoints"] if not is_number(one.get("score"))]
    if len(unscored) == len(told["checkpoints"]):
        notes.append("no scores of the checkpoints were given")
    elif unscored:
        notes.append(f"no score for {', '.join(unscored)}")
    return _list(notes) or "<p>Nothing.</p>"


def _reading() -> str:
    rows = "".join(f"<dt>{escape(what)}</dt><dd>{escape(how, 1000)}</dd>" for what, how in _READING)
    return f"<dl>{rows}</dl>"


def _run(told: Told) -> dict[str, Any]:
    wanted = ("method", "at", "base", "chosen", "dtypes", "versions")
    return {name: told[name] for name in wanted if name in told}
