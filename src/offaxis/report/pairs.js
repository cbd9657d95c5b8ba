// The page of pairs: sorting, groups, one scatter with axes and colours to choose, theme.

(function start() {
  const data = JSON.parse(byId("data").textContent);
  const state = { x: 0, y: 0, colour: -1 };

  // ------------------------------------------------------------------------------------- sorting

  const body = byId("pairs").tBodies[0];
  const heads = [...document.querySelectorAll("#pairs thead [aria-sort]")];
  const manifest = [...body.rows];
  const compareText = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;

  /** Rows by a column; those without a value stand last either way, equal ones as before. */
  function ordered(column, numeric, turn) {
    const value = (row) => row.cells[column].dataset.sort;
    const key = (row) => (numeric ? Number(value(row)) : value(row));
    const known = manifest.filter((row) => value(row) !== undefined);
    known.sort((a, b) => turn * (numeric ? key(a) - key(b) : compareText(key(a), key(b))));
    return [...known, ...manifest.filter((row) => value(row) === undefined)];
  }

  function sort(head) {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
    heads.forEach((one) => { one.ariaSort = one === head ? next : "none"; });
    const button = head.querySelector("button");
    const column = Number(button.dataset.column);
    const turn = next === "ascending" ? 1 : -1;
    const rows = next === "none" ? manifest : ordered(column, head.dataset.kind === "number", turn);
    body.replaceChildren(...rows);
    byId("sorted").textContent = next === "none" ? "In the manifest's order" : `Sorted by ${button.textContent}, ${next}`;
  }
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => sort(head)));

  // -------------------------------------------------------------------------------------- groups

  const groups = [...document.querySelectorAll(".grouped")];
  const group = byId("choose-group");
  function showGroup() {
    groups.forEach((one, i) => { one.hidden = String(i) !== group.value; });
  }
  if (group) { group.disabled = groups.length < 2; group.addEventListener("change", showGroup); showGroup(); }

  // ------------------------------------------------------------------------------------- scatter

  function options(id, entries, then) {
    const select = byId(`choose-${id}`);
    entries.forEach(([value, words]) => select.append(new Option(words, String(value))));
    select.value = String(state[id]);
    select.disabled = entries.length < 2;
    select.addEventListener("change", () => { state[id] = Number(select.value); then(); });
  }

  /** Marks of a value: its own symbol and colour, and a colour turned once symbols come round. */
  const look = (i) => [SYMBOLS[(i + 3 * Math.floor(i / 8)) % 8], colour(SERIES[i % 8])];

  /** A log axis where what is not zero spans more than a factor of 30; shares stay as they are. */
  function wide(one) {
    const known = one.values.filter((v) => v !== null && v !== 0);
    return !one.share && Math.min(...known) > 0 && Math.max(...known) / Math.min(...known) > 30;
  }

  /** Bars from an interval, none where there is none or a log axis cannot show it. */
  function bars(one, places, log) {
    const reach = (end, sign) => places.map((i) => (end[i] === null || (log && one.low[i] <= 0) ? 0 : Math.max(0, sign * (end[i] - one.values[i]))));
    return { type: "data", symmetric: false, array: reach(one.high, 1), arrayminus: reach(one.low, -1),
      thickness: 1, width: 0, color: colour("--soft") };
  }

  function told(one, i) {
    const show = one.share ? shareText : shown;
    const ends = one.low[i] === null || one.high[i] === null ? "" : ` [${show(one.low[i])}, ${show(one.high[i])}]`;
    return `${safe(one.title)}: ${show(one.values[i])}${ends}`;
  }

  function drawPairs() {
    const x = data.axes[state.x], y = data.axes[state.y];
    if (!x || !y) return absent("pairs", "No measure is defined for any pair.");
    const by = data.colours[state.colour];
    const log = { x: wide(x), y: wide(y) };
    const fits = (one, i, logarithmic) => one.values[i] !== null && !(logarithmic && one.values[i] === 0);
    const all = data.names.map((_, i) => i);
    const places = all.filter((i) => fits(x, i, log.x) && fits(y, i, log.y));
    const out = all.filter((i) => !places.includes(i)).map((i) => data.names[i]);
    byId("left-out").textContent = out.length ? `Not drawn, being undefined or zero on a log scale: ${out.join(", ")}.` : "";
    if (!places.length) return absent("pairs", "No pair has both of these numbers.");
    const order = by ? by.order : [null];
    const words = (i) => [safe(data.names[i]), ...data.colours.map((one) => `${safe(one.key)}: ${safe(one.values[i] ?? "—")}`), told(x, i), told(y, i)].join("<br>");
    const traces = order.map((value, k) => {
      const mine = by ? places.filter((i) => by.values[i] === value) : places;
      const [symbol, tint] = look(k);
      return { type: "scatter", mode: "markers", hoverinfo: "text", x: mine.map((i) => x.values[i]), y: mine.map((i) => y.values[i]),
        text: mine.map(words), marker: { symbol, color: tint, size: 11, line: { width: 1, color: colour("--paper") } },
        error_x: bars(x, mine, log.x), error_y: bars(y, mine, log.y) };
    });
    const side = (one, kind) => axis(safe(one.title) + (log[kind] ? " (log scale)" : ""), {
      type: log[kind] ? "log" : "linear", tickformat: one.share ? ".0%" : "", nticks: narrow() && kind === "x" ? 4 : 8, ...(log[kind] ? { dtick: 1 } : {}) });
    draw("pairs", traces, { height: 460, xaxis: side(x, "x"), yaxis: side(y, "y") });
    legend("pairs", by ? order.map((value, k) => [value ?? "—", ...look(k)]) : []);
  }

  const place = (key) => Math.max(0, data.axes.findIndex((one) => one.key === key));
  state.x = place("relative_update_norm");
  state.y = place("unchanged_bf16");
  state.colour = data.colours.length ? 0 : -1;
  const axes = data.axes.map((one, i) => [i, one.title]);
  options("x", axes, drawPairs);
  options("y", axes, drawPairs);
  options("colour", [...data.colours.map((one, i) => [i, one.key]), [-1, "nothing"]], drawPairs);

  // --------------------------------------------------------------------------------------- theme

  function theme(name) {
    document.documentElement.dataset.theme = name;
    byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let own = false;
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { if (!own) { theme(dark.matches ? "dark" : "light"); drawPairs(); } });
  byId("theme").addEventListener("click", () => {
    own = true;
    theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    drawPairs();
  });
  let before = "light";
  const printing = (on) => {
    if (on) before = document.documentElement.dataset.theme;
    theme(on ? "light" : before);
    document.documentElement.toggleAttribute("data-print", on);
    drawPairs();
  };
  window.addEventListener("beforeprint", () => printing(true));
  window.addEventListener("afterprint", () => printing(false));
  let small = narrow();
  window.addEventListener("resize", () => { if (small !== narrow()) { small = narrow(); drawPairs(); } });
  drawPairs();
  document.documentElement.dataset.drawn = "true";
}());
