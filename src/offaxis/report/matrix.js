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
function blockWords(height, width, shape, values, tell) {
  const span = (i, parts, whole) => `${Math.floor((i * whole) / parts)}–${Math.max(Math.floor(((i + 1) * whole) / parts) - 1, Math.floor((i * whole) / parts))}`;
  return Array.from({ length: height }, (_, i) => Array.from({ length: width }, (_, j) =>
    `rows ${span(i, height, shape[0])}, columns ${span(j, width, shape[1])}<br>${tell(values[i * width + j])}`));
}

/** A map of a matrix with its row profile to the right and its column profile above.

`sides` has lists `rows` and `cols` of { values, tint, dash, words }; heads of attention are lines. */
function drawMap(name, one, { h, w, values, look, sides, span, height, tell, tint }) {
  const { shape } = one;
  const traces = [{ type: "heatmap", z: Array.from({ length: h }, (_, i) => values.slice(i * w, (i + 1) * w)), ...look, showscale: false,
    x0: shape[1] / w / 2, dx: shape[1] / w, y0: shape[0] / h / 2, dy: shape[0] / h, hoverinfo: "text", hovertext: blockWords(h, w, shape, values, tell) }];
  const marks = [headMarks(one, "rows", ["x domain", "x2 domain"], 12, tint), headMarks(one, "cols", ["y domain", "y2 domain"], 8, tint)];
  const stripe = (side, place) => {
    const at = side.values.map((_, i) => ((i + 0.5) * shape[place]) / side.values.length);
    const [x, y] = place ? [at, side.values] : [side.values, at];
    traces.push({ type: "scatter", mode: "lines", x, y, line: { color: side.tint, width: side.dash ? 1 : 1.4, dash: side.dash || "solid" }, hoverinfo: "text",
      text: side.values.map((v, i) => `${marks[place].head(at[i])}${place ? "column" : "row"} near ${Math.floor(at[i])}<br>${side.words}: ${tell(v)}`),
      xaxis: place ? "x" : "x2", yaxis: place ? "y2" : "y" });
  };
  sides.rows.forEach((side) => stripe(side, 0));
  sides.cols.forEach((side) => stripe(side, 1));
  const ends = (place) => {
    const [low, high] = span[place], pad = 0.08 * (high - low);
    return { range: [low - pad, high + pad], tickmode: "array", zeroline: low < 0, showgrid: false,
      ...(low < 0 ? { tickvals: [0], ticktext: ["0"] } : { tickvals: [low, high], ticktext: [low, high].map(briefShare) }) };
  };
  const named = (words, mark) => (mark.axis.tickvals ? `${words}, by head` : words);
  draw(name, traces, { height, margin: { l: 62, r: 26, t: 16, b: 48 }, shapes: marks.flatMap((mark) => mark.lines),
    xaxis: axis(named("Column", marks[1]), { domain: [0, 0.74], range: [0, shape[1]], automargin: false, nticks: 4, showgrid: false, ...marks[1].axis }),
    yaxis: axis(named("Row", marks[0]), { domain: [0, 0.75], range: [shape[0], 0], automargin: false, showgrid: false, nticks: 6, ...marks[0].axis }),
    xaxis2: axis("", { domain: [0.82, 1], anchor: "y", tickangle: 0, automargin: false, ...ends(0) }),
    yaxis2: axis("", { domain: [0.81, 1], anchor: "x", tickangle: 0, automargin: false, ...ends(1) }) });
}

/** A share in whole percent, or with two digits where it is small. */
const briefShare = (value) => `${value >= 0.1 || value <= 0 ? Math.round(100 * value) : shown(100 * value, 2)}%`;

/** From the lowest to the highest value of the profiles along each side; about zero if signed. */
function spans(...all) {
  return ["rows", "cols"].map((key) => {
    const values = all.flatMap((sides) => sides[key]).flatMap((side) => side.values);
    const low = Math.min(...values), high = Math.max(...values), reach = Math.max(-low, high);
    if (!values.length) return [0, 1];
    if (low < 0) return [-reach, reach];
    return high > low ? [low, high] : [low, low + 0.01];
  });
}

/** The row and column profiles of `one`, and of its null where it has one. */
function profileSides(one, nullOnly = false) {
  const of = (key) => [
    ...(one[`${key}Null`] ? [{ values: unpack(one[`${key}Null`]), tint: colour("--soft"), dash: nullOnly ? "" : "dot", words: "magnitude null" }] : []),
    ...(one[key] && !nullOnly ? [{ values: unpack(one[key]), tint: colour("--two"), words: "observed" }] : []),
  ];
  return { rows: of("rows"), cols: of("cols") };
}

function drawMask(curves, one) {
  if (!curves.picture) return absent("mask", "No mask picture was kept for this matrix.");
  const { h, w, max } = curves.picture;
  const sides = profileSides(curves);
  drawMap("mask", one, { h, w, values: unpack(curves.picture), look: { colorscale: scale("seq"), zmin: 0, zmax: max || 1 }, sides, span: spans(sides),
    height: 420, tell: shareText, tint: colour("--two") });
  const entries = [[`picture: from 0 to ${shareText(max)} of a block changed`, "ramp", ""], ["share per row, per column", null, colour("--two"), "solid"]];
  return legend("mask", curves.rowsNull ? [...entries, ["its magnitude null", null, colour("--soft"), "dot"]] : entries);
}

/** The difference that the page's `pack_signed` wrote. */
const unpackSigned = ({ reach, q }) => [...q].map((code) => ((CODES.get(code) - 31) * reach) / 31);

/** In how many runs the entries of the chosen matrix changed, what size predicts, the difference. */
function drawConsensus(data, state) {
  const names = ["consensus", "consensus-null", "consensus-gap"];
  const found = data.matrices.consensus[state.matrix], one = data.matrices.list[state.matrix];
  if (!found) return names.forEach((name) => absent(name, "No consensus was kept for this matrix."));
  const { h, w } = found.picture, seen = unpack(found.picture);
  const gap = found.gap ? unpackSigned(found.gap) : null;
  const none = gap ? seen.map((v, i) => Math.max(0, v - gap[i])) : [];
  const all = [...seen, ...none], low = Math.min(...all), high = Math.max(...all);
  const look = { colorscale: scale("seq"), zmin: low, zmax: high > low ? high : low + 1 };
  const runs = data.consensus.length ? `of ${data.consensus.length} runs` : "of runs";
  const ramp = [`from ${shareText(low)} to ${shareText(high)} ${runs}`, "ramp", ""];
  const sides = profileSides(found), common = { h, w, height: 380, span: spans(sides), tell: shareText, tint: colour("--two") };
  drawMap("consensus", one, { ...common, values: seen, look, sides });
  legend("consensus", [ramp, ["rows, columns", null, colour("--two"), "solid"], ["their null", null, colour("--soft"), "dot"]]);
  if (!gap) return ["consensus-null", "consensus-gap"].forEach((name) => absent(name, "No null was kept for this matrix."));
  drawMap("consensus-null", one, { ...common, values: none, look, sides: profileSides(found, true) });
  legend("consensus-null", [ramp]);
  const apart = (key) => (found[key] && found[`${key}Null`] ? [{ tint: colour("--two"), words: "difference",
    values: unpack(found[key]).map((v, i) => v - unpack(found[`${key}Null`])[i]) }] : []);
  const reach = found.gap.reach || 1, gaps = { rows: apart("rows"), cols: apart("cols") };
  drawMap("consensus-gap", one, { ...common, values: gap, look: { colorscale: scale("div"), zmin: -reach, zmax: reach },
    sides: gaps, span: spans(gaps), tell: signedShare, tint: colour("--ink") });
  return legend("consensus-gap", [[`from ${signedShare(-reach)} to ${signedShare(reach)}`, "both", ""]]);
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
  const pairs = names.filter((name) => names.includes(`${name}_magnitude_null`));
  const alone = names.filter((name) => !isNull(name) && !pairs.includes(name));
  const beside = pairs.filter((name) => of(name) !== null || !name.includes("_profile_"));  // the last checkpoint has none
  const title = (name) => titles[names.indexOf(name)];
  const tables = [];
  if (alone.length) tables.push(factTable("Measures", ["Measure", "Value"], alone.map((name) => [title(name), shown(of(name))])));
  if (beside.length) tables.push(factTable("Beside their nulls", ["Measure", "Observed", "Magnitude", "Rounding"],
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
  drawMask(curves, one);
  drawProfiles(data, state);
  drawDistances(curves);
  drawFacts(data, state.checkpoint, state.matrix);
  return byId("plot-consensus") ? drawConsensus(data, state) : undefined;
}
