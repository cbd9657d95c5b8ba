// The plots of the chosen matrix.

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const CODES = new Map([...DIGITS].map((character, code) => [character, code]));
const DISTANCES = ["0", "1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", "65–128", "129–256", "257–512",
  "513–1024", "> 1024"];

/** The values that the page's `pack` wrote as base-64 digits. */
function unpack(packed) {
  const { max, d, q } = packed;
  const step = max / (64 ** d - 1);
  return Array.from({ length: q.length / d }, (_, i) => {
    let code = 0;
    for (let j = 0; j < d; j += 1) code = 64 * code + CODES.get(q[i * d + j]);
    return code * step;
  });
}

function curve(ranks, one) {
  return one ? { x: ranks[one.n], y: one.y } : null;
}

/** Plotly draws powers of ten a quarter larger. */
const small = () => ({ size: 9, color: colour("--soft") });

function lines(name, entries, words, more, empty) {
  const drawn = entries.filter((entry) => entry.curve);
  if (!drawn.length) return absent(name, empty);
  draw(name, drawn.map(({ curve: { x, y }, label, tint, dash }) => ({
    type: "scatter", mode: x.length > 1 ? "lines" : "markers", x, y, line: { color: tint, dash, width: 2 },
    hoverinfo: "text", text: x.map((rank, i) => `${label}<br>${words} ${rank}: ${shown(y[i], 5)}`) })), more);
  return legend(name, drawn.map(({ label, tint, dash }) => [label, null, tint, dash]));
}

function drawSpectrum(ranks, one, spectrum) {
  const none = "No spectrum was computed for this matrix.";
  const tuned = spectrum && one.shift
    ? { n: spectrum.n, y: spectrum.y.map((value, i) => (one.shift[i] === null ? null : value * (1 + one.shift[i]))) } : null;
  const log = { xaxis: axis("Rank", { type: "log", dtick: 1, tickfont: small() }), height: 320 };
  lines("spectrum", [
    { curve: curve(ranks, spectrum), label: "base", tint: colour("--base"), dash: "solid" },
    { curve: curve(ranks, tuned), label: "tuned", tint: colour("--one"), dash: "dash" },
    { curve: curve(ranks, one.update), label: "update", tint: colour("--two"), dash: "dot" },
  ], "singular value", { ...log, yaxis: axis("Singular value", { type: "log", dtick: narrow() ? 2 : 1, tickfont: small() }) }, none);
  const shift = spectrum && one.shift ? { n: spectrum.n, y: one.shift } : null;
  lines("shift", [{ curve: curve(ranks, shift), label: "relative change", tint: colour("--one"), dash: "solid" }], "rank",
    { ...log, yaxis: axis("Relative change", { zeroline: true, nticks: 6 }) }, none);
}

function drawAngles(ranks, one) {
  lines("angles", [
    { curve: curve(ranks, one.left), label: "left (output side)", tint: colour("--one"), dash: "solid" },
    { curve: curve(ranks, one.right), label: "right (input side)", tint: colour("--two"), dash: "dash" },
  ], "angle", { height: 320, xaxis: axis("Principal angle, from the smallest"), yaxis: axis("Degrees", { rangemode: "tozero" }) },
  "No principal angles were computed for this matrix.");
}

/** Hover words of one block: its rows, its columns, the share. */
function blockWords(height, width, shape, values) {
  const span = (i, parts, whole) => `${Math.floor((i * whole) / parts)}–${Math.max(Math.floor(((i + 1) * whole) / parts) - 1, Math.floor((i * whole) / parts))}`;
  return Array.from({ length: height }, (_, i) => Array.from({ length: width }, (_, j) =>
    `rows ${span(i, height, shape[0])}, columns ${span(j, width, shape[1])}<br>${shareText(values[i * width + j])}`));
}

function heat(picture, shape) {
  const values = unpack(picture), { h, w } = picture;
  return { type: "heatmap", z: Array.from({ length: h }, (_, i) => values.slice(i * w, (i + 1) * w)), colorscale: scale("seq"),
    zmin: 0, zmax: picture.max || 1, x0: shape[1] / w / 2, dx: shape[1] / w, y0: shape[0] / h / 2, dy: shape[0] / h,
    hoverinfo: "text", hovertext: blockWords(h, w, shape, values), showscale: false };
}

function drawMask(one, shape) {
  if (!one.picture) return absent("mask", "No mask picture was kept for this matrix.");
  const traces = [heat(one.picture, shape)];
  const stripe = (packed, size, along, words) => {
    if (!packed) return;
    const values = unpack(packed);
    const at = values.map((_, i) => ((i + 0.5) * size) / values.length);
    const [x, y] = along === "rows" ? [values, at] : [at, values];
    traces.push({ type: "scatter", mode: "lines", x, y, line: { color: colour("--two"), width: 1.4 }, hoverinfo: "text",
      text: values.map((v, i) => `${words} near ${Math.floor(at[i])}<br>${shareText(v)}`),
      xaxis: along === "rows" ? "x2" : "x", yaxis: along === "rows" ? "y" : "y2" });
  };
  stripe(one.rows, shape[0], "rows", "row");
  stripe(one.cols, shape[1], "cols", "column");
  const side = (packed) => {
    const top = (packed && packed.max) || 1;
    return { range: [0, 1.08 * top], tickmode: "array", tickvals: [0, top], ticktext: ["0", shareText(top)], tickangle: 0 };
  };
  draw("mask", traces, { height: 420, margin: { l: 56, r: 18, t: 12, b: 48 },
    xaxis: axis("Column", { domain: [0, 0.74], range: [0, shape[1]], nticks: narrow() ? 4 : 6, showgrid: false }),
    yaxis: axis("Row", { domain: [0, 0.75], range: [shape[0], 0], showgrid: false, nticks: 6 }),
    xaxis2: axis("", { domain: [0.82, 1], anchor: "y", ...side(one.rows) }),
    yaxis2: axis("", { domain: [0.81, 1], anchor: "x", ...side(one.cols) }) });
  legend("mask", [[`picture: from 0 to ${shareText(one.picture.max)} of a block changed`, "ramp", ""],
    ["share per row, per column", null, colour("--two"), "solid"]]);
}

function drawDistances(one) {
  if (!one.ulp) return absent("ulp", "No histogram of distances was kept for this matrix.");
  const total = one.ulp.reduce((sum, value) => sum + value, 0) || 1;
  const shares = one.ulp.map((value) => (value > 0 ? value / total : null));
  const names = one.ulp.map((_, i) => DISTANCES[i] || String(i));
  draw("ulp", [{ type: "bar", x: names.map((_, i) => i), y: shares, marker: { color: colour("--one") }, hoverinfo: "text",
    hovertext: one.ulp.map((value, i) => `distance ${safe(names[i])}: ${shareText(value / total)}<br>${value.toLocaleString("en")} entries`) }],
  { height: 320, xaxis: labelled(names.map(safe), { tickangle: -50, title: { text: "Distance in bfloat16 values", standoff: 6,
    font: { size: 12, color: colour("--soft") } } }),
  yaxis: axis("Share of entries", { type: "log", dtick: 1, tickformat: "~%" }) });
}

function cell(tag, text, role) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (role) node.scope = role;
  return node;
}

function factTable(caption, heads, rows) {
  const table = document.createElement("table");
  table.createCaption().textContent = caption;
  const top = table.createTHead().insertRow();
  heads.forEach((head) => top.append(cell("th", head, "col")));
  const body = table.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    row.append(cell("th", name, "row"), ...values.map((value) => cell("td", value)));
  }
  return table;
}

/** Measures with nulls beside them, the others in a list. */
function drawFacts(data, checkpoint, matrix) {
  const { factNames: names, factTitles: titles, facts } = data.matrices;
  const values = facts[checkpoint][matrix];
  const of = (name) => { const i = names.indexOf(name); return i < 0 ? null : values[i]; };
  const isNull = (name) => name.endsWith("_null");
  const beside = names.filter((name) => names.includes(`${name}_magnitude_null`));
  const alone = names.filter((name) => !isNull(name) && !beside.includes(name));
  const title = (name) => titles[names.indexOf(name)];
  const tables = [];
  if (alone.length) tables.push(factTable("Measures", ["Measure", "Value"], alone.map((name) => [title(name), shown(of(name))])));
  if (beside.length) tables.push(factTable("Overlaps beside their nulls", ["Overlap", "Observed", "Magnitude", "Rounding"],
    beside.map((name) => [title(name), shown(of(name)), shown(of(`${name}_magnitude_null`)), shown(of(`${name}_rounding_null`))])));
  byId("facts-table").replaceChildren(...tables);
}

function drawMatrix(data, state) {
  const one = data.matrices.list[state.matrix];
  if (!one) {
    byId("one-matrix").replaceChildren(cell("p", "There are no curves of single matrices to show."));
    return undefined;
  }
  const curves = data.matrices.curves[state.checkpoint][state.matrix];
  byId("matrix-name").textContent = one.name;
  drawSpectrum(data.matrices.ranks, curves, data.matrices.spectra[state.matrix]);
  drawAngles(data.matrices.angleRanks, curves);
  drawMask(curves, one.shape);
  drawDistances(curves);
  drawFacts(data, state.checkpoint, state.matrix);
  const consensus = data.matrices.consensus[state.matrix];
  if (!consensus) return absent("consensus", "No consensus was kept for this matrix.");
  const trace = { ...heat(consensus, one.shape), showscale: true, colorbar: { ...bar("share of runs"), tickformat: ".0%" } };
  return draw("consensus", [trace], { height: 320, xaxis: axis("Column", { nticks: 5, showgrid: false }),
    yaxis: axis("Row", { autorange: "reversed", showgrid: false }) });
}
