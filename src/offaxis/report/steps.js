// Over the training steps: a measure of each run, and the profiles of the chosen matrix.

/** A hexadecimal colour as one that lets the paper through. */
function faint(tint, opacity) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(tint.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

/** The colour at `part` (0 to 1) of the way through the later half of the sequential scale. */
function later(part) {
  const [from, to] = part < 0.5 ? ["--seq2", "--seq3"] : ["--seq3", "--seq4"];
  const mix = 2 * part - (part < 0.5 ? 0 : 1);
  const ends = [from, to].map((name) => [1, 3, 5].map((i) => parseInt(colour(name).slice(i, i + 2), 16)));
  return `rgb(${ends[0].map((v, i) => Math.round(v + mix * (ends[1][i] - v))).join(",")})`;
}

const runLook = (run) => [colour(SERIES[run % 8]), SYMBOLS[run % 8]];

/** One measure of every run: interval shaded, null dashed. */
function drawOverSteps(data, name, measure, words, height) {
  const { runs, points } = data.series;
  const bands = [], lines = [];
  let some = false;
  runs.forEach((label, run) => {
    const [tint, symbol] = runLook(run);
    const mine = points[run].filter((point) => point.v[measure]);
    const whole = mine.filter(({ v }) => v[measure][2] !== null && v[measure][3] !== null);
    const nulls = mine.filter(({ v }) => v[measure][1] !== null);
    const x = (list) => list.map((point) => point.step);
    const y = (list, which) => list.map((point) => point.v[measure][which]);
    const text = (list) => list.map(({ step, label: full, v }) => {
      const [value, none, low, high] = v[measure];
      const ends = low === null ? "" : ` [${shown(low)}, ${shown(high)}]`;
      return `${safe(full)}, step ${step}<br>${words}: ${shown(value)}${ends}${none === null ? "" : `<br>magnitude null: ${shown(none)}`}`;
    });
    const common = { type: "scatter", hoverinfo: "text" };
    if (whole.length > 1) {
      bands.push({ type: "scatter", mode: "lines", hoverinfo: "skip", fill: "toself", fillcolor: faint(tint, 0.16), line: { width: 0 },
        x: [...x(whole), ...x(whole).reverse()], y: [...y(whole, 2), ...y(whole, 3).reverse()] });
    } else if (whole.length) {
      bands.push({ type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: faint(tint, 0.35), width: 5 },
        x: [...x(whole), ...x(whole)], y: [...y(whole, 2), ...y(whole, 3)] });
    }
    if (nulls.length) {
      some = true;
      lines.push({ ...common, mode: "lines+markers", x: x(nulls), y: y(nulls, 1), text: text(nulls),
        line: { color: tint, dash: "dash", width: 1.2 }, marker: { symbol: `${symbol}-open`, size: 8, color: tint } });
    }
    if (mine.length) lines.push({ ...common, mode: "lines+markers", x: x(mine), y: y(mine, 0), text: text(mine),
      line: { color: tint, width: 2 }, marker: { symbol, size: 7, color: tint } });
  });
  if (!lines.length) return absent(name, "This measure is not defined for any checkpoint of a run.");
  const last = Math.max(...points.flat().map((point) => point.step));
  draw(name, [...bands, ...lines], { height,
    xaxis: axis("Step", { range: [0, 1.04 * last], nticks: narrow() ? 5 : 9 }),
    yaxis: axis("", { nticks: 6, tickformat: measure === "unchanged_bf16" ? ".0%" : "",
      zeroline: measure.endsWith("_excess"), zerolinecolor: colour("--ink"), zerolinewidth: 1.2 }) });
  const entries = runs.map((label, run) => [label, runLook(run)[1], runLook(run)[0], "solid"]);
  return legend(name, some ? [...entries, ["magnitude null", "hollow", colour("--soft"), "dash"]] : entries);
}

function drawSeries(data, state) {
  if (!data.series) return;
  const found = data.series.measures.find((one) => one.name === state.series);
  if (found) drawOverSteps(data, "series", found.name, found.title, 340);
  for (const name of data.series.profiles) drawOverSteps(data, `series-${name}`, name, "correlation", 250);
}

/** Where the heads of attention meet along one side of a matrix, and one tick in the middle of each. */
function headMarks(one, side, across, ticks, tint = colour("--soft")) {
  if (!one.heads || one.heads.side !== side) return { axis: {}, lines: [], head: () => "" };
  const { count } = one.heads, size = one.shape[side === "rows" ? 0 : 1] / count;
  const every = Math.ceil(count / ticks), named = Array.from({ length: count }, (_, i) => i).filter((i) => i % every === 0);
  const line = { color: tint, width: 1, dash: "dot" };
  const lines = count > 64 ? [] : Array.from({ length: count - 1 }, (_, i) => (i + 1) * size).flatMap((at) => across.map((ref) => {
    const [along, over] = side === "rows" && ref.startsWith("x") ? ["y", "x"] : ["x", "y"];
    return { type: "line", line, [`${over}ref`]: ref, [`${over}0`]: 0, [`${over}1`]: 1, [`${along}0`]: at, [`${along}1`]: at };
  }));
  return { lines, head: (at) => `head ${Math.min(count - 1, Math.floor(at / size))}, `,
    axis: { tickmode: "array", tickvals: named.map((i) => (i + 0.5) * size), ticktext: named.map(String), showgrid: false } };
}

/** Evenly spaced members of a list, the ends included. */
function some(list, most) {
  if (list.length <= most) return list;
  return Array.from({ length: most }, (_, i) => list[Math.round((i * (list.length - 1)) / (most - 1))]);
}

/** Which side of a matrix is striped in the papers: what attention and the MLP write from. */
function naturalSide(one) {
  return (one.heads && one.heads.side === "cols") || ["o_proj", "down_proj"].includes(one.role) ? "cols" : "rows";
}

function drawProfiles(data, state) {
  const run = data.series && data.series.shown[state.run];
  const one = data.matrices.list[state.matrix];
  if (!run || !one || !byId("plot-profile")) return;
  const side = state.along, key = side === "rows" ? "rows" : "cols";
  const size = one.shape[side === "rows" ? 0 : 1], word = side === "rows" ? "row" : "column";
  const kept = some(run.at, 6).map(([checkpoint, step]) => ({ step, curves: data.matrices.curves[checkpoint][state.matrix] }));
  const level = (name) => kept.map(({ step, curves }, i) => ({ step, values: curves[name] ? unpack(curves[name]) : null,
    tint: later(kept.length > 1 ? i / (kept.length - 1) : 1) })).filter((line) => line.values);
  const seen = level(key), none = level(`${key}Null`);
  byId("persist").textContent = persistence(data, state, run, word);
  if (!seen.length) return ["profile", "profile-null"].forEach((name) => absent(name, "No profiles were kept for this matrix."));
  const all = [...seen, ...none].flatMap((line) => line.values);
  const low = Math.min(...all), high = Math.max(...all), pad = 0.05 * (high - low) || 0.01;
  const marks = headMarks(one, side, ["y domain"], narrow() ? 8 : 16);
  const title = marks.lines.length || marks.axis.tickvals ? `${word === "row" ? "Row" : "Column"}, by attention head` : (word === "row" ? "Row" : "Column");
  const plot = (name, lines) => {
    if (!lines.length) return absent(name, "No null was kept for this matrix.");
    draw(name, lines.map(({ step, values, tint }) => {
      const at = values.map((_, i) => ((i + 0.5) * size) / values.length);
      return { type: "scatter", mode: "lines", x: at, y: values, line: { color: tint, width: 1.4 }, hoverinfo: "text",
        text: values.map((v, i) => `step ${step}<br>${marks.head(at[i])}${word} near ${Math.floor(at[i])}<br>${shareText(v)}`) };
    }), { height: 300, shapes: marks.lines, xaxis: axis(title, { range: [0, size], nticks: narrow() ? 5 : 8, showgrid: false, ...marks.axis }),
      yaxis: axis("Share changed", { range: [Math.max(0, low - pad), high + pad], nticks: 6, tickformat: ".0%" }) });
    return legend(name, lines.map(({ step, tint }) => [`step ${step}`, null, tint, "solid"]));
  };
  plot("profile", seen);
  return plot("profile-null", none);
}

/** How early this matrix's profile was fixed, in words. */
function persistence(data, state, run, word) {
  const of = (checkpoint, name) => {
    const place = data.matrices.factNames.indexOf(name);
    return place < 0 ? null : data.matrices.facts[checkpoint][state.matrix][place];
  };
  const last = run.at[run.at.length - 1];
  const words = run.at.slice(0, -1).map(([checkpoint, step]) => [step, of(checkpoint, `${word}_profile_correlation`), of(checkpoint, `${word}_profile_correlation_magnitude_null`)])
    .filter(([, value]) => value !== null).map(([step, value, none]) => `${shown(value, 3)} at step ${step}${none === null ? "" : ` (null ${shown(none, 3)})`}`);
  const stripes = of(last[0], `${word}_stripes`);
  const first = words.length ? `Correlation of the ${word} profile with that of step ${last[1]}: ${some(words, 6).join(", ")}. ` : "";
  return first + (stripes === null ? "" : `At step ${last[1]}, ${word}s differ in changed share with ${shown(stripes, 3)} times the variance that magnitudes predict.`);
}
