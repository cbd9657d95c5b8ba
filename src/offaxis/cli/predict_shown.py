"""What `offaxis predict` shows: the record in words, the assessment, and its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offaxis.predict import Prediction, Predictor, Series

__all__ = ["assessed", "lines", "page_beside", "shown"]


def assessed(
    series: "Series", method: "Predictor", at: float | None, progress: Any
) -> dict[str, Any]:
    """`backtest`, `curve` and `advice` of a series, for the record; empty of one checkpoint.

    A factor that was given to `scale` reaches to factor times the last checkpoint's step.
    """
    from offaxis.predict import Scale
    from offaxis.predict.assessing import assess

    if len(series) < 2:
        return {}
    last = series.points[-1].step
    if at is None and isinstance(method, Scale) and method.factor is not None and last is not None:
        at = method.factor * last
    return assess(series, at=at, method=method, progress=progress).told()


def page_beside(directory: Path, told: Mapping[str, Any]) -> None:
    """Write report.html into the prediction's directory."""
    from offaxis.report.predict import write_page

    write_page(directory / "report.html", told=told)


def _without_rows(told: dict[str, Any]) -> dict[str, Any]:
    """The record without what only predict.json needs: each case, and the points of the picture."""
    out = dict(told)
    for name, key in (("backtest", "rows"), ("curve", "drawn")):
        if name in out:
            out[name] = {what: value for what, value in out[name].items() if what != key}
    return out


def shown(made: "Prediction") -> dict[str, Any]:
    """The record without its rows a tensor and a case, which are in DIR/predict.json."""
    told = _without_rows(made.told())
    del told["tensors"]
    return {"out": str(made.directory), **told}


def lines(found: dict[str, Any]) -> list[str]:
    """What a terminal shows."""
    facts, steps = found["facts"], [one["step"] for one in found["checkpoints"]]
    known = "" if None in steps else f" (step{'s' * (len(steps) > 1)} {_listed(steps)})"
    what = "the weights" if found["at"] is None else f"step {found['at']:g}"
    count = len(steps)
    out = [
        f"{found['out']}: {what} by {found['method']['name']} from {count} "
        f"checkpoint{'s' * (count > 1)}{known}",
        f"  {facts['over_last']:.3g} times the last checkpoint's distance from BASE; "
        f"{facts['moved_on']:.3g} of that distance beyond it",
    ]
    if "explained_mean" in facts:
        out.append(
            f"  the directions kept hold {facts['explained_mean']:.1%} of the movement, on average "
            "over tensors"
        )
    if "chosen" in found:
        chosen = found["chosen"]
        out.append(
            f"  factor {chosen['factor']:g}, best of {len(chosen['tried'])} on {chosen['data']}: "
            f"{chosen['metric']} {chosen['score']:.4f}, which is too good by having been chosen"
        )
    if facts.get("rounding", 0) > 0.01:
        out.append(f"  rounding lost {facts['rounding']:.1%} of the predicted update")
    out += [f"  note: {note}" for note in found["notes"]]
    return out + _advice_lines(found)


def _listed(steps: list[float]) -> str:
    return ", ".join(f"{step:g}" for step in steps)


def _advice_lines(found: Mapping[str, Any]) -> list[str]:
    """The recommendation and its reasons, as a terminal shows them."""
    advice = found.get("advice")
    if advice is None:
        return []
    out = [f"recommendation: {advice['headline']}"]
    out += [f"  {one['text']}" for one in advice["reasons"]]
    out += [f"  wanted: {one}" for one in advice["wanted"]]
    return out
