"""The report in a real browser: plots drawn, nothing fetched, nothing clipped, controls alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import Browser
from offaxis.report import render
from report_tables import HOSTILE, make, make_contrasts, make_empty, make_hostile, make_scores

PLOTS = ("grid", "scatter", "means", "mask", "spectrum", "angles", "shift", "ulp", "consensus")
PLOTS += ("consensus-null", "consensus-gap", "profile", "profile-null", "series")
PLOTS += ("series-row_profile_correlation", "series-column_profile_correlation")
PLOTS += ("jaccard", "jaccard-null", "runs", "contrast")
CONSENSUS = ("consensus", "consensus-null", "consensus-gap")
OF_MATRIX = ("mask", "spectrum", "shift", "angles", "ulp")

BOXES = """(() => {
  const wide = document.documentElement.clientWidth, out = [];
  for (const node of document.querySelectorAll("main *, header *")) {
    if (node.closest("svg, .unseen, .skip, thead, details:not([open]) > :not(summary)")) continue;
    const box = node.getBoundingClientRect();
    const name = `${node.tagName} ${node.id || node.className}`;
    if (box.width && (box.left < -1 || box.right > wide + 1)) out.push(name);
    if (getComputedStyle(node).display === "inline" || node.closest("select")) continue;
    if (node.clientWidth && node.scrollWidth > node.clientWidth + 1) out.push(`inside ${name}`);
  }
  return out;
})()"""
"""Boxes that reach out of the window, or whose content reaches out of them."""

PLOT_TEXT = """(() => {
  const out = [];
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const frame = plot.getBoundingClientRect(), level = [];
    for (const text of plot.querySelectorAll("svg text")) {
      const box = text.getBoundingClientRect();
      if (!box.width || !text.textContent.trim()) continue;
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) out.push(`${plot.id} clips ${text.textContent}`);
      const turned = /rotate\\((?!0[,)])/.test(text.getAttribute("transform") || "");
      if (!turned) level.push([text.textContent, box]);
    }
    level.forEach(([one, a], i) => level.slice(i + 1).forEach(([two, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 4) out.push(`${plot.id}: ${one} over ${two}`);
    }));
  }
  return out;
})()"""
"""Words of plots that are cut off, or that lie over one another."""

STACKED = """(() => {
  const out = [], groups = "figure, main, main > section, .grid, #one-matrix";
  const name = (one) => one.id || one.className || one.tagName;
  for (const group of document.querySelectorAll(groups)) {
    const boxes = [...group.children].filter((one) => !one.matches(".controls, .skip"))
      .map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => box.height);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([two, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 1) out.push(`${name(one)} over ${name(two)}`);
    }));
  }
  return out;
})()"""
"""Parts of the page that lie over one another."""


def choose(control: str, index: int) -> str:
    """A script that picks an entry of a control as a user would."""
    return (
        f"(() => {{ const one = document.getElementById('choose-{control}'); "
        f"one.selectedIndex = {index}; one.dispatchEvent(new Event('change', {{bubbles: true}})); "
        "return one.options[one.selectedIndex].text; })()"
    )


def drawn(name: str) -> str:
    """A script that tells what a plot shows."""
    return f"JSON.stringify(document.getElementById('plot-{name}').data)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "full": render(*make(), scores=make_scores(), contrasts=make_contrasts()),
        "runs": render(
            *make({f"runs/{r}-{s}": 1e-5 * s for r in "ab" for s in (20, 40, 60)}),
            contrasts=make_contrasts(),
        ),
        "hostile": render(*make_hostile()),
        "empty": render(*make_empty()),
        "deep": render(*make({f"runs/a-{i}0": 3e-4 * i for i in (1, 2)}, layers=28, width=32)),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def test_the_client_sees_requests_errors_and_overflow(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><html data-drawn=true><meta name=viewport content=width=device-width>"
        "<main><p style='width:900px'>wide</p></main>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('planted'); no();</script>"
    )
    browser.open(page, 390)
    assert browser.requests() == ["http://127.0.0.1:9/x.png"]
    assert any("planted" in words for words in browser.complaints())
    assert any("no is not defined" in words for words in browser.complaints())
    assert browser.evaluate(BOXES) == ["P "]


@pytest.mark.parametrize(
    ("page", "width", "dark"),
    [
        *[(page, 390, False) for page in ("full", "hostile", "empty", "runs")],
        *[(page, 1440, True) for page in ("full", "deep")],
        *[
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (
                *[(page, 1440, False) for page in ("full", "hostile", "empty", "runs")],
                ("deep", 390, True),
                ("runs", 1100, False),
                *[("full", width, True) for width in (390, 768, 1030)],
            )
        ],
    ],
)
def test_pages_fit_and_fetch_nothing(
    browser: Browser, pages: dict[str, Path], page: str, width: int, dark: bool
) -> None:
    browser.open(pages[page], width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == []
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(wide) <= 0
    assert browser.evaluate(BOXES) == []
    assert browser.evaluate(PLOT_TEXT) == []
    assert browser.evaluate(STACKED) == []


def test_every_plot_is_drawn(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 1440)
    for name in PLOTS:
        marks = (
            f"document.querySelectorAll('#plot-{name} .main-svg :is(.point path, path.point, "
            ".js-line, .hm image, .scatterlayer path)').length"
        )
        assert browser.evaluate(marks) > 0, name
        assert browser.evaluate(f"document.querySelectorAll('#plot-{name} .xtick').length") > 0, (
            name
        )


def test_the_theme_changes_page_and_plots(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 1440)
    look = (
        "[getComputedStyle(document.body).backgroundColor, document.getElementById('plot-means')"
        ".layout.font.color, document.getElementById('theme').ariaPressed]"
    )
    light = browser.evaluate(look)
    browser.evaluate("document.getElementById('theme').click()")
    dark = browser.evaluate(look)
    assert all(one != two for one, two in zip(light, dark, strict=True))
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(look) == light
    browser.open(pages["full"], 1440, dark=True)
    assert browser.evaluate(look) == dark
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("control", "index", "changed"),
    [
        ("checkpoint", 0, ("grid", "scatter", "mask", "spectrum", "shift", "angles", "ulp")),
        ("matrix", 9, (*OF_MATRIX, "profile", "profile-null", *CONSENSUS)),
        ("matrix", 13, (*OF_MATRIX[:-1], "profile", "profile-null", *CONSENSUS)),
        ("series", 1, ("series",)),
        ("run", 1, ("profile", "profile-null")),
        ("along", 1, ("profile", "profile-null")),
        ("grid", 5, ("grid",)),
        ("overlap", 1, ("scatter", "means")),
        ("view", 1, ("scatter",)),
        ("contrast", 2, ("contrast",)),
    ],
)
def test_controls_change_their_plots(
    browser: Browser, pages: dict[str, Path], control: str, index: int, changed: tuple[str, ...]
) -> None:
    browser.open(pages["runs" if control == "run" else "full"], 1440)
    before = {name: browser.evaluate(drawn(name)) for name in PLOTS}
    name_before = browser.evaluate("document.getElementById('facts-table').textContent")
    words = browser.evaluate(choose(control, index))
    for name in PLOTS:
        if name in changed:
            assert browser.evaluate(drawn(name)) != before[name], name
        elif name not in ("scatter", "jaccard", "jaccard-null"):
            assert browser.evaluate(drawn(name)) == before[name], name
    if control == "matrix":
        assert browser.evaluate("document.getElementById('matrix-name').textContent") == words
    if control in ("matrix", "checkpoint"):
        assert browser.evaluate("document.getElementById('facts-table').textContent") != name_before
    assert browser.complaints() == []


def point(browser: Browser, plot: str, index: int) -> tuple[float, float]:
    """Where a mark of a scatter plot is on the screen, after scrolling to it."""
    mark = f"[...document.querySelectorAll('#plot-{plot} .scatterlayer .points path')].at({index})"
    browser.evaluate(f"{mark}.scrollIntoView({{block: 'center'}})")
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    x, y = browser.evaluate(
        f"(() => {{ const b = {mark}.getBoundingClientRect(); "
        "return [(b.left + b.right) / 2, (b.top + b.bottom) / 2]; })()"
    )
    return float(x), float(y)


def mouse(browser: Browser, kind: str, x: float, y: float) -> None:
    browser.call(
        "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, buttons=0
    )


def test_hover_shows_values_and_a_click_chooses_a_matrix(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["full"], 1440)
    before = browser.evaluate("document.getElementById('matrix-name').textContent")
    x, y = point(browser, "scatter", -1)
    mouse(browser, "mouseMoved", x - 1, y)
    mouse(browser, "mouseMoved", x, y)
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    words = browser.evaluate("document.querySelector('#plot-scatter .hoverlayer').textContent")
    assert "magnitude null" in words
    assert "down_proj" in words
    for kind in ("mousePressed", "mouseReleased"):
        mouse(browser, kind, x, y)
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    after = browser.evaluate("document.getElementById('matrix-name').textContent")
    assert before != after
    assert after in words
    assert (
        browser.evaluate("document.getElementById('choose-matrix').selectedOptions[0].text")
        == after
    )


def test_hostile_names_do_nothing_in_the_browser(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], 1440)
    x, y = point(browser, "scatter", -1)
    mouse(browser, "mouseMoved", x - 1, y)
    mouse(browser, "mouseMoved", x, y)
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    words = browser.evaluate("document.querySelector('#plot-scatter .hoverlayer').textContent")
    assert HOSTILE[:30] in words
    assert browser.evaluate("typeof window.hacked") == "undefined"
    assert (
        browser.evaluate("document.querySelectorAll('main img, svg a, main b, h1 *').length") == 0
    )
    roles = browser.evaluate("document.getElementById('plot-grid').textContent")
    assert "<b>q_proj" in roles


def test_controls_have_labels_and_take_the_focus(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 390)
    bare = "[...document.querySelectorAll('select')].filter(s => s.labels.length !== 1).length"
    assert browser.evaluate(bare) == 0
    lost = (
        "[...document.querySelectorAll('select, button, summary')].filter(one => "
        "{ one.focus(); return document.activeElement !== one && !one.disabled; }).length"
    )
    assert browser.evaluate(lost) == 0


def test_paper_gets_the_light_theme_and_plots_that_fit(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["full"], 1440, dark=True)
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    browser.evaluate("new Promise(done => setTimeout(done, 500))")
    assert browser.evaluate("document.documentElement.dataset.theme") == "light"
    widest = "Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.clientWidth))"
    assert browser.evaluate(widest) <= 680
    browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    assert browser.complaints() == []
