// Choices, theme, and the first drawing.

(function start() {
  const data = JSON.parse(byId("data").textContent);
  const state = { checkpoint: Math.max(0, data.checkpoints.length - 1), matrix: 0, grid: "", overlap: "", view: "observed", contrast: "", series: "", run: 0, along: "rows" };
  let ownSide = false;

  function options(id, entries, key, then) {
    const select = byId(`choose-${id}`);
    if (!select) return;
    const groups = new Map();
    for (const { value, words, group } of entries) {
      const option = new Option(words, String(value));
      if (group === undefined) { select.append(option); continue; }
      if (!groups.has(group)) {
        const made = document.createElement("optgroup");
        made.label = group;
        groups.set(group, made);
        select.append(made);
      }
      groups.get(group).append(option);
    }
    select.disabled = entries.length < 2;
    select.closest("label").hidden = !entries.length;
    if (!entries.length) return;
    if (!entries.some((entry) => entry.value === state[key])) state[key] = entries[0].value;
    select.value = String(state[key]);
    select.addEventListener("change", () => {
      state[key] = entries[select.selectedIndex].value;
      then();
    });
  }

  function choose(name) {
    const index = data.matrices.list.findIndex((one) => one.name === name);
    if (index < 0) return;
    state.matrix = index;
    const select = byId("choose-matrix");
    select.selectedIndex = order.findIndex((entry) => entry.value === index);
    drawChosen();
  }

  /** Rows or columns, whichever are striped in such matrices, until the reader has chosen. */
  function follow() {
    const one = data.matrices.list[state.matrix], select = byId("choose-along");
    if (!one || !select || ownSide) return;
    state.along = naturalSide(one);
    select.value = state.along;
  }

  const grid = () => (data.grid.layers.length && state.grid ? drawGrid(data, state) : absent("grid", "No measure is defined for any tensor."));
  const scatter = () => { drawScatter(data, state, choose); drawMeans(data, state); };
  const drawChosen = () => { follow(); drawScatter(data, state, choose); drawMatrix(data, state); };
  const contrast = () => drawContrast(data, state);
  function drawAll() {
    if (data.checkpoints.length) { grid(); scatter(); drawMatrix(data, state); }
    contrast();
    drawJaccard(data);
    drawSeries(data, state);
  }

  function theme(name) {
    document.documentElement.dataset.theme = name;
    const button = byId("theme");
    button.setAttribute("aria-pressed", String(name === "dark"));
  }

  const list = data.matrices.list.map((one, i) => ({ value: i, words: one.name, group: one.role }));
  const roles = [...new Set(list.map((entry) => entry.group))];
  const order = roles.flatMap((role) => list.filter((entry) => entry.group === role));
  const headed = order.filter((entry) => data.matrices.list[entry.value].heads).map((entry) => entry.group);
  const opening = order.filter((entry) => entry.group === (headed.includes("q_proj") ? "q_proj" : headed[0] || roles[0]));
  if (order.length) state.matrix = opening[Math.floor(opening.length / 2)].value;
  const gridNames = Object.keys(data.grid.values);
  const overlaps = Object.keys(data.points.titles);
  options("checkpoint", data.checkpoints.map((one, i) => ({ value: i, words: one.label })), "checkpoint", drawAll);
  options("matrix", order, "matrix", drawChosen);
  options("grid", gridNames.map((name) => ({ value: name, words: gridTitle(data, name) })), "grid", grid);
  options("overlap", overlaps.map((name) => ({ value: name, words: data.points.titles[name] })), "overlap", scatter);
  const views = [["observed", "observed against null"], ["difference", "difference from null"]];
  options("view", overlaps.length ? views.map(([value, words]) => ({ value, words })) : [], "view", () => drawScatter(data, state, choose));
  options("contrast", [...new Set(data.contrasts.map((row) => row.title))].map((words) => ({ value: words, words })), "contrast", contrast);

  const runs = data.series ? data.series.shown : [];
  options("series", data.series ? data.series.measures.map(({ name, title }) => ({ value: name, words: title })) : [], "series", () => drawSeries(data, state));
  options("run", runs.map((one, i) => ({ value: i, words: one.run })), "run", () => drawProfiles(data, state));
  options("along", runs.length ? [["rows", "rows"], ["cols", "columns"]].map(([value, words]) => ({ value, words })) : [], "along", () => {
    ownSide = true;
    drawProfiles(data, state);
  });
  follow();

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let own = false;
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { if (!own) { theme(dark.matches ? "dark" : "light"); drawAll(); } });
  byId("theme").addEventListener("click", () => {
    own = true;
    theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    drawAll();
  });
  let before = "light";
  const printing = (on) => {
    if (on) before = document.documentElement.dataset.theme;
    theme(on ? "light" : before);
    document.documentElement.toggleAttribute("data-print", on);
    drawAll();
  };
  window.addEventListener("beforeprint", () => printing(true));
  window.addEventListener("afterprint", () => printing(false));
  let wide = !narrow();
  window.addEventListener("resize", () => { if (wide === narrow()) { wide = !narrow(); drawAll(); } });
  drawAll();
  document.documentElement.dataset.drawn = "true";
}());
