"""The page of a prediction in a real browser: it fits, fetches nothing, and runs no name."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import Browser
from offaxis.report.predict import write_page
from report_tables import HOSTILE
from test_report_browser import BOXES, STACKED
from test_report_predict import make, without

OVERFLOW = BOXES.replace('"svg, ', '"svg, .scroller, ')
"""Wide tables scroll in a box of their own."""

WORDS = """(() => {
  const out = [];
  for (const chart of document.querySelectorAll("svg.chart")) {
    const frame = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll("text")].map((one) => [one.textContent, one.getBoundingClientRect()]);
    texts.forEach(([one, a], i) => {
      if (!a.width) return;
      if (a.left < frame.left - 1 || a.right > frame.right + 1) out.push(`clips ${one}`);
      texts.slice(i + 1).forEach(([two, b]) => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 4) out.push(`${one} over ${two}`);
      });
    });
  }
  return out;
})()"""  # noqa: E501
"""Words of charts that are cut off, or that lie over one another."""

CHARTS = (
    "[...document.querySelectorAll('svg.chart')]"
    ".filter(one => one.getBoundingClientRect().height > 100).length"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    told = {
        "full": make(),
        "hostile": make(HOSTILE),
        "bare": without("backtest", "curve", "advice"),
    }
    for name, one in told.items():
        write_page(folder / f"{name}.html", told=one)
    return {name: folder / f"{name}.html" for name in told}


@pytest.mark.parametrize("page", ["full", "hostile", "bare"])
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_pages_fit_and_fetch_nothing(
    browser: Browser, pages: dict[str, Path], page: str, width: int, dark: bool
) -> None:
    browser.open(pages[page], width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == []
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(wide) <= 0
    assert browser.evaluate(OVERFLOW) == []
    assert browser.evaluate(STACKED) == []
    assert browser.evaluate(WORDS) == []
    assert browser.evaluate("typeof window.hacked") == "undefined"
    assert browser.evaluate(CHARTS) == (1 if page == "bare" else 2), "one of each two drawings"


def test_the_recommendation_is_seen_and_the_theme_turns(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["full"], 1280)
    heading = "document.querySelector('h1')"
    assert browser.evaluate(f"{heading}.textContent") == "Extrapolate, with relex."
    assert browser.evaluate(f"{heading}.getBoundingClientRect().bottom") < 300
    look = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(look)
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(look) != light
    assert browser.evaluate("document.getElementById('theme').ariaPressed") == "true"
