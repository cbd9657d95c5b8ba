"use strict";
// Drawing: colours from the style sheet, one way to lay out a plot, and the plots of all matrices.

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross"];
const SERIES = ["--one", "--two", "--three", "--four", "--five", "--six", "--seven", "--eight"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const CONFIG = {
  responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset", scrollZoom: false,
};

const byId = (id) => document.getElementById(id);
const narrow = () => window.innerWidth < 600;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Text for plotly, which reads a kind of HTML. */
function safe(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A label for an axis, its middle left out where it is long. */
function brief(text, wide = 26) {
  const most = narrow() ? Math.min(16, wide) : wide;
  if (text.length <= most) return safe(text);
  const head = Math.floor((most - 1) / 2);
  return safe(`${text.slice(0, head)}…${text.slice(text.length - (most - 1 - head))}`);
}

/** A number to so many significant digits, with a true minus. */
function shown(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "—";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value).replace("-", "−");
  if (size >= 1e-3 && size < 1e6) return String(Number(value.toPrecision(digits))).replace("-", "−");
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  const raised = [...String(Number(power))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
  return `${mantissa.replace("-", "−")}×10${raised}`;
}

const shareText = (value) => (value === null ? "—" : `${shown(100 * value, 3)}\u00a0%`);

const signedShare = (value) => (value > 0 ? `+${shareText(value)}` : shareText(value));

function scale(kind) {
  return [0, 1, 2, 3, 4].map((i) => [i / 4, colour(`--${kind}${i}`)]);
}

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 12, color: colour("--soft") }, standoff: 8 },
    gridcolor: colour("--rule"), linecolor: colour("--rule"), zerolinecolor: colour("--soft"),
    zeroline: false, tickfont: { size: 11, color: colour("--soft") }, automargin: true,
    exponentformat: "power", minexponent: 3, ...more,
  };
}

function labelled(labels, more = {}) {
  return axis("", {
    tickmode: "array", tickvals: labels.map((_, i) => i), ticktext: labels, showgrid: false, ...more,
  });
}

/** Draw into the figure `name`; more.height is its height in pixels. */
function draw(name, traces, more) {
  const place = byId(`plot-${name}`);
  if (!place) return;
  place.classList.remove("empty");
  place.style.height = `${more.height || 340}px`;
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: colour("--font"), size: 12, color: colour("--ink") },
    margin: { l: 52, r: 14, t: 12, b: 44 }, hovermode: "closest", dragmode: narrow() ? false : "zoom",
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--soft"), align: "left",
      font: { color: colour("--ink"), size: 12 } },
    ...more, autosize: true,
  };
  delete layout.height;
  if (place.textContent && !place.data) place.textContent = "";
  return Plotly.react(place, traces, layout, CONFIG);
}

/** Say in words why there is no plot. */
function absent(name, words) {
  const place = byId(`plot-${name}`);
  if (!place) return;
  if (place.data) Plotly.purge(place);
  place.style.height = "";
  place.classList.add("empty");
  place.textContent = words;
  legend(name, []);
}

function mark(kind, tint, dash) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("viewBox", "0 0 26 12");
  picture.setAttribute("aria-hidden", "true");
  const add = (tag, values) => {
    const node = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
    picture.append(node);
  };
  if (dash !== undefined) {
    const strokes = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 4", longdashdot: "9 3 2 3" };
    add("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: tint, "stroke-width": 2, "stroke-dasharray": strokes[dash] });
  }
  const shapes = {
    circle: "M9 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", square: "M9 2h8v8h-8z", diamond: "M13 1l5 5-5 5-5-5z",
    "triangle-up": "M13 2l5 8h-10z", "triangle-down": "M13 10l5-8h-10z", x: "M9 3l1-1 3 3 3-3 1 1-3 3 3 3-1 1-3-3-3 3-1-1 3-3z",
    star: "M13 1l1.5 3.5 3.7.3-2.8 2.4.9 3.6-3.3-2-3.3 2 .9-3.6-2.8-2.4 3.7-.3z", cross: "M11 2h4v2h3v4h-3v3h-4v-3h-3v-4h3z",
  };
  if (kind === "ramp") [0, 1, 2, 3, 4].forEach((i) => add("rect", { x: 5 * i, y: 1, width: 5.2, height: 10, fill: colour(`--seq${i}`) }));
  if (kind === "both") [0, 1, 2, 3, 4].forEach((i) => add("rect", { x: 5 * i, y: 1, width: 5.2, height: 10, fill: colour(`--div${i}`) }));
  if (shapes[kind]) add("path", { d: shapes[kind], fill: tint });
  if (kind === "hollow") add("path", { d: shapes.circle, fill: "none", stroke: tint, "stroke-width": 1.4 });
  return picture;
}

/** Entries are [words, symbol or null, colour, dash or undefined]. */
function legend(name, entries) {
  const place = byId(`legend-${name}`);
  if (!place) return;
  place.replaceChildren(...entries.map(([words, kind, tint, dash]) => {
    const item = document.createElement("span");
    item.append(mark(kind, tint, dash), document.createTextNode(words));
    return item;
  }));
}

function gridValues(data, measure) {
  const lists = data.grid.values[measure];
  return measure === "unchanged_bf16" ? lists.map((one) => one.map((v) => (v === null ? null : 1 - v))) : lists;
}

function gridTitle(data, measure) {
  return measure === "unchanged_bf16" ? "Changed share" : data.grid.titles[measure];
}

/** Colour range over all checkpoints, so that choosing another keeps the scale. */
function gridRange(measure, lists) {
  const all = lists.flat().filter((v) => v !== null);
  const low = Math.min(...all), high = Math.max(...all);
  if (measure.endsWith("_excess")) {
    const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { zmin: -reach, zmax: reach, colorscale: scale("div") };
  }
  const floor = measure === "effective_rank" ? low : 0;
  return { zmin: floor, zmax: high > floor ? high : floor + 1, colorscale: scale("seq") };
}

function bar(title) {
  return { thickness: 10, outlinewidth: 0, xpad: 6, len: 1, tickfont: { size: 11, color: colour("--soft") },
    exponentformat: "power", title: { text: title, side: "right", font: { size: 11, color: colour("--soft") } } };
}

function drawGrid(data, state) {
  const { layers, roles, sizes } = data.grid;
  const lists = gridValues(data, state.grid);
  const title = gridTitle(data, state.grid);
  const share = state.grid === "unchanged_bf16";
  const upright = narrow() || roles.length > layers.length;
  const layer = layers.map((v) => (v === null ? "none" : String(v)));
  const flat = lists[state.checkpoint];
  const pick = (i, j) => i * roles.length + j;
  const words = (i, j) => {
    const at = pick(i, j);
    const where = layers[i] === null ? safe(roles[j]) : `layer ${layer[i]}, ${safe(roles[j])}`;
    const many = sizes[at] > 1 ? ` (mean of ${sizes[at]})` : "";
    return `${where}${many}<br>${title}: ${share ? shareText(flat[at]) : shown(flat[at])}`;
  };
  const rows = upright ? layers : roles, cols = upright ? roles : layers;
  const order = (i, j) => (upright ? [i, j] : [j, i]);
  const z = rows.map((_, i) => cols.map((_, j) => flat[pick(...order(i, j))]));
  const text = rows.map((_, i) => cols.map((_, j) => (z[i][j] === null ? "" : words(...order(i, j)))));
  const few = layer.map((v, i) => (layers.length <= 16 || i % 4 === 0 || v === "none" ? v : ""));
  const roleAxis = { ...labelled(roles.map((r) => brief(r, 20)), upright ? { tickangle: -60 } : {}) };
  const layerAxis = labelled(few, { title: { text: "Layer", standoff: 6, font: { size: 12, color: colour("--soft") } } });
  const trace = { type: "heatmap", z, hovertext: text, hoverinfo: "text", hoverongaps: false, xgap: 1, ygap: 1,
    colorbar: bar(share ? "share" : ""), ...gridRange(state.grid, lists) };
  if (share) trace.colorbar.tickformat = ".0%";
  draw("grid", [trace], {
    height: Math.max(220, (upright ? 15 : 24) * rows.length + (upright ? 150 : 80)),
    xaxis: upright ? roleAxis : layerAxis,
    yaxis: { ...(upright ? layerAxis : roleAxis), autorange: "reversed" },
  });
}

function drawScatter(data, state, choose) {
  const lists = data.points.values[state.overlap];
  if (!lists) return absent("scatter", "No overlap was measured matrix by matrix.");
  const [seen, expected, rounding] = lists[state.checkpoint];
  const apart = state.view === "difference";
  const lift = (value, i) => (value === null || expected[i] === null ? null : apart ? value - expected[i] : value);
  const roles = [...new Set(data.points.roles)];
  const tints = (role) => Math.min(roles.indexOf(role), SYMBOLS.length - 1);
  const indices = seen.map((_, i) => i).filter((i) => lift(seen[i], i) !== null);
  if (!indices.length) return absent("scatter", "This overlap is not defined for any matrix of this checkpoint.");
  const chosen = data.matrices.list[state.matrix];
  const words = (i) => `${safe(data.points.names[i])}<br>observed ${shown(seen[i])}<br>magnitude null ${shown(expected[i])}`
    + `<br>rounding null ${shown(rounding[i])}<br>difference ${shown(seen[i] - expected[i])}`;
  const traces = [];
  const hollow = indices.filter((i) => lift(rounding[i], i) !== null);
  if (hollow.length) traces.push({ type: "scatter", mode: "markers", hoverinfo: "skip",
    x: hollow.map((i) => expected[i]), y: hollow.map((i) => lift(rounding[i], i)),
    marker: { symbol: "circle-open", size: 6, color: colour("--base"), opacity: 0.7 } });
  traces.push({ type: "scatter", mode: "markers", hoverinfo: "text", customdata: indices,
    x: indices.map((i) => expected[i]), y: indices.map((i) => lift(seen[i], i)), text: indices.map(words),
    marker: { size: indices.map((i) => (chosen && data.points.names[i] === chosen.name ? 13 : 8)),
      symbol: indices.map((i) => SYMBOLS[tints(data.points.roles[i])]),
      color: indices.map((i) => colour(SERIES[tints(data.points.roles[i])])),
      line: { width: indices.map((i) => (chosen && data.points.names[i] === chosen.name ? 2.5 : 0)), color: colour("--ink") } } });
  const ends = indices.flatMap((i) => [expected[i], apart ? expected[i] : seen[i], ...(apart || rounding[i] === null ? [] : [rounding[i]])]);
  const pad = 0.05 * (Math.max(...ends) - Math.min(...ends)) || 0.01;
  const range = [Math.min(...ends) - pad, Math.max(...ends) + pad];
  draw("scatter", traces, { height: 400,
    shapes: [{ type: "line", layer: "below", x0: range[0], x1: range[1], y0: apart ? 0 : range[0],
      y1: apart ? 0 : range[1], line: { color: colour("--soft"), width: 1.2 } }],
    xaxis: axis("Magnitude null", { range }),
    yaxis: axis(apart ? "Observed − magnitude null" : "Observed overlap", apart ? {} : { range }) });
  const named = roles.slice(0, SYMBOLS.length).map((role, i) => [
    i === SYMBOLS.length - 1 && roles.length > SYMBOLS.length ? "other roles" : role, SYMBOLS[i], colour(SERIES[i])]);
  legend("scatter", hollow.length ? [...named, ["rounding null", "hollow", colour("--base")]] : named);
  const place = byId("plot-scatter");
  place.removeAllListeners("plotly_click");
  place.on("plotly_click", (event) => choose(data.points.names[event.points[0].customdata]));
}

/** Dots with intervals, one a row; rows hold label, value, low, high, words. */
function forest(name, rows, title) {
  if (!rows.length) return absent(name, "There is nothing to draw.");
  const whole = rows.filter((row) => row.low !== null && row.high !== null);
  const y = (row) => rows.indexOf(row);
  const ends = [0, ...rows.map((row) => row.value), ...whole.flatMap((row) => [row.low, row.high])];
  const pad = 0.06 * (Math.max(...ends) - Math.min(...ends)) || 0.01;
  const traces = [
    ...whole.map((row) => ({ type: "scatter", mode: "lines", hoverinfo: "skip", x: [row.low, row.high],
      y: [y(row), y(row)], line: { color: colour("--one"), width: 2.5 } })),
    { type: "scatter", mode: "markers", hoverinfo: "text", x: rows.map((row) => row.value), y: rows.map(y),
      text: rows.map((row) => row.words), marker: { size: 10, color: colour("--one"),
        symbol: rows.map((row) => (row.low > 0 || row.high < 0 ? "circle" : "circle-open")), line: { width: 2, color: colour("--one") } } },
  ];
  draw(name, traces, { height: 90 + 30 * rows.length,
    shapes: [{ type: "line", layer: "below", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: colour("--ink"), width: 1.2 } }],
    xaxis: axis(title, { nticks: narrow() ? 4 : 7, range: [Math.min(...ends) - pad, Math.max(...ends) + pad] }),
    yaxis: labelled(rows.map((row) => brief(row.label, 30)), { range: [rows.length - 0.4, -0.6] }) });
  legend(name, [["interval leaves out zero", "circle", colour("--one")], ["it does not, or there is none", "hollow", colour("--one")]]);
}

function drawMeans(data, state) {
  const rows = (data.means[state.overlap] || []).map((row) => ({ ...row,
    words: `${safe(row.label)}<br>${shown(row.value)}${row.low === null ? "" : ` [${shown(row.low)}, ${shown(row.high)}]`}` }));
  forest("means", rows, "Observed − magnitude null");
}

function drawContrast(data, state) {
  if (!byId("plot-contrast")) return;
  const mine = data.contrasts.filter((row) => row.title === state.contrast && row.difference !== null);
  const held = { step: "steps", norm: "norm", accuracy: "accuracy" };
  forest("contrast", mine.map((row) => ({ ...row, value: row.difference, label: `equal ${held[row.matched] || row.matched}`,
    words: `equal ${safe(held[row.matched] || row.matched)} at ${safe(row.at)}<br>${safe(row.a)} − ${safe(row.b)}<br>`
      + `${shown(row.difference)}${row.low === null ? "" : ` [${shown(row.low)}, ${shown(row.high)}]`}` })),
  "First run − second run");
}

function drawJaccard(data) {
  if (!data.jaccard) return;
  const { labels, observed, null: expected, in_r_runs: counts } = data.jaccard;
  const apart = (values) => values.flatMap((row, i) => row.filter((v, j) => i !== j && v !== null));
  const high = Math.max(0.01, ...apart(observed), ...(expected ? apart(expected) : []));
  const ticks = labels.map((label) => brief(label, 18));
  const table = (name, values, look) => {
    const z = values.map((row, i) => row.map((v, j) => (i === j ? null : v)));
    const hovertext = z.map((row, i) => row.map((v, j) => `${safe(labels[i])}<br>${safe(labels[j])}<br>${shown(v)}`));
    const cell = labels.length <= 8 ? z.map((row) => row.map((v) => (v === null ? "" : v.toFixed(2).replace("-", "−")))) : undefined;
    draw(name, [{ type: "heatmap", z, hovertext, hoverinfo: "text", hoverongaps: false, xgap: 2, ygap: 2,
      ...look, text: cell, texttemplate: cell ? "%{text}" : undefined, colorbar: bar("") }],
    { xaxis: labelled(ticks, { tickangle: -40 }), yaxis: labelled(ticks, { autorange: "reversed" }), height: 360 });
  };
  const level = { zmin: 0, zmax: high, colorscale: scale("seq") };
  table("jaccard", observed, level);
  if (expected) {
    const gap = observed.map((row, i) => row.map((v, j) => (v === null || expected[i][j] === null ? null : v - expected[i][j])));
    const reach = Math.max(0.01, ...apart(gap).map(Math.abs));
    table("jaccard-null", expected, level);
    table("jaccard-gap", gap, { zmin: -reach, zmax: reach, colorscale: scale("div") });
  }
  if (counts) draw("runs", [{ type: "bar", x: counts.map((_, i) => i), y: counts, marker: { color: colour("--one") }, hoverinfo: "text",
    hovertext: counts.map((v, i) => `${i} of ${counts.length - 1} runs: ${shareText(v)}`) }],
  { xaxis: axis("Runs in which the entry changed", { dtick: Math.ceil(counts.length / 12) }), yaxis: axis("Share of entries", { tickformat: ".0%" }), height: 300 });
}
