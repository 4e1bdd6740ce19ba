// The tokens twice, with lines from each query, on the left, to the keys that it reads, on the right.

const MAX_LINES = 1500, LINES_WIDE = 190;

const rowHeight = (app) => (app.data.prompts[app.state.prompt].tokens.length > 60 ? 17 : 22);

// Heads whose lines are shown.
const headsShown = (state, model) => {
  const all = Array.from({ length: model.nHead }, (_, i) => i);
  const layers = state.every ? Array.from({ length: model.nLayer }, (_, i) => i)
    : [Math.min(state.layer, model.nLayer - 1)];
  const numbers = state.every || state.shown === null ? all : all.filter((i) => state.shown.includes(i));
  return layers.flatMap((layer) => numbers.map((number) => layer * model.nHead + number));
};

// Lines, strongest first, and how many there are in all; with a query or key alone those of one token.
const linesOf = (app, model, query = null, key = null) => {
  const { state } = app, entries = model.entries(state.prompt), circuit = state.marked ? model.circuit : null;
  let n = 0;
  const kept = largest(MAX_LINES, (add) => {
    for (const head of headsShown(state, model)) {
      entries.eachOpen(head, (q, k, weight) => {
        if (weight < state.least || (query !== null && q !== query) || (key !== null && k !== key)) return;
        if (circuit && !circuit.has(head, q * entries.size + k, state.n)) return;
        n += 1;
        add(weight, { head, query: q, key: k, weight });
      });
    }
  });
  return { kept, n };
};

const colourOf = (state, model, head) =>
  lineColour(state.every ? Math.floor(head / model.nHead) : head % model.nHead);

// Lines of several heads between the same two tokens bend in different places, so that each is seen.
const drawLine = (app, model, line, high, bright) => {
  const layer = Math.floor(line.head / model.nHead), number = line.head % model.nHead;
  const [i, n] = app.state.every ? [layer, model.nLayer] : [number, model.nHead];
  const a = (line.query + 0.5) * high, b = (line.key + 0.5) * high;
  const bend = Math.round(LINES_WIDE * (0.25 + (0.5 * (i + 0.5)) / n));
  return makeDrawn("path", { d: "M0," + a + "C" + bend + "," + a + " " + bend + "," + b + " " + LINES_WIDE + "," + b,
    stroke: colourOf(app.state, model, line.head), "stroke-width": (bright ? 1.6 : 0.8) + 3.6 * line.weight,
    "stroke-opacity": bright ? 0.45 + 0.55 * line.weight : 0.12 + 0.7 * line.weight });
};

const tokenColumn = (app, side, high) => {
  const { tokens } = app.data.prompts[app.state.prompt];
  return make("ol", { class: "asp-tokens asp-" + side, "aria-label": side === "query" ? "queries" : "keys" },
    ...tokens.map((token, i) => {
      const name = make("span", { class: "asp-token" }, shortText(token, 18) || "\u00a0");
      const place = make("span", { class: "asp-place" }, String(i + app.data.base));
      const item = make("li", { "data-position": i }, ...(side === "query" ? [name, place] : [place, name]));
      item.style.height = high + "px";
      return item;
    }));
};

class Sentence {
  constructor(app, index) {
    Object.assign(this, { app, index, model: app.models[index], high: rowHeight(app) });
    const size = app.data.prompts[app.state.prompt].tokens.length;
    this.queries = tokenColumn(app, "query", this.high);
    this.keys = tokenColumn(app, "key", this.high);
    this.every = makeDrawn("g");
    this.chosen = makeDrawn("g", { class: "asp-bright" });
    const tall = size * this.high;
    this.lines = makeDrawn("svg", { width: LINES_WIDE, height: tall, viewBox: "0 0 " + LINES_WIDE + " " + tall,
      class: "asp-lines" },
      this.every, this.chosen);
    const { kept, n } = linesOf(app, this.model);
    this.every.append(...kept.slice().reverse().map((line) => drawLine(app, this.model, line, this.high, false)));
    this.note = n > kept.length ? kept.length.toLocaleString("en") + " strongest of " + n.toLocaleString("en") +
      " lines"
      : counted(n, "line");
    for (const side of [this.queries, this.keys]) {
      side.addEventListener("pointerover", (event) => this.hover(side, event));
      side.addEventListener("click", (event) => this.click(side, event));
    }
    this.settle();
  }

  // Bright lines of a token, and behind the tokens at their other ends how much they carry.
  light(query, key) {
    const { app, model } = this, { kept } = linesOf(app, model, query, key);
    this.lines.classList.toggle("asp-dim", query !== null || key !== null);
    this.chosen.replaceChildren(...(query === null && key === null ? []
      : kept.slice(0, 400).reverse().map((line) => drawLine(app, model, line, this.high, true))));
    const mass = new Map();
    for (const line of query === null && key === null ? [] : kept) {
      const end = query !== null ? line.key : line.query;
      mass.set(end, Math.max(mass.get(end) || 0, line.weight));
    }
    const ends = query !== null ? this.keys : this.queries, other = query !== null ? this.queries : this.keys;
    [...ends.children].forEach((item, i) => {
      item.style.background = mass.has(i) ? cssColour("weight", 0.06 + 0.5 * mass.get(i)) : "";
    });
    [...other.children].forEach((item) => { item.style.background = ""; });
    [...this.queries.children].forEach((item, i) => item.classList.toggle("asp-on", i === query));
    [...this.keys.children].forEach((item, i) => item.classList.toggle("asp-on", i === key));
  }

  // What is chosen in the state.
  settle() {
    const { query, key } = this.app.state;
    this.light(query, query === null || key !== null ? key : null);
  }

  positionAt(event) {
    const item = event.target.closest("li");
    return item ? Number(item.dataset.position) : null;
  }

  hover(side, event) {
    const position = this.positionAt(event);
    if (position === null) return;
    if (side === this.queries) this.light(position, null);
    else this.light(null, position);
  }

  // A query is chosen first, then a key: the head with the strongest line between them.
  click(side, event) {
    const position = this.positionAt(event), { state } = this.app;
    if (position === null) return;
    if (side === this.queries) this.app.update({ model: this.index, query: position, key: null }, true);
    else if (state.query !== null && position <= state.query) this.chooseKey(position);
    else this.app.update({ model: this.index, query: null, key: position }, true);
  }

  chooseKey(key) {
    const { app, model } = this, [best] = linesOf(app, model, app.state.query, key).kept;
    const place = best ? { layer: Math.floor(best.head / model.nHead), head: best.head % model.nHead } : {};
    app.update({ model: this.index, key, ...(app.state.every ? place : { head: place.head ?? app.state.head }) }, true);
  }
}

const sentenceFigure = (app, index) => {
  const sentence = new Sentence(app, index);
  const body = make("div", { class: "asp-sentence", onpointerleave: () => sentence.settle() },
    sentence.queries, sentence.lines, sentence.keys);
  return make("figure", { class: "asp-figure", "data-model": index }, app.caption(index),
    make("div", { class: "asp-ends" }, make("span", {}, "query, reads"), make("span", {}, "key, is read")),
    body, make("figcaption", { class: "asp-axis" }, sentence.note));
};

const headChips = (app) => {
  const { state } = app, model = app.models[state.model];
  const on = (i) => state.shown === null || state.shown.includes(i);
  const toggled = (i) => {
    const now = Array.from({ length: model.nHead }, (_, j) => j).filter((j) => (j === i ? !on(j) : on(j)));
    return now.length === model.nHead ? null : now;
  };
  const chips = Array.from({ length: model.nHead }, (_, i) => {
    const mark = make("span", { class: "asp-mark" });
    mark.style.background = on(i) ? lineColour(i) : "transparent";
    mark.style.borderColor = lineColour(i);
    return make("button", { type: "button", class: "asp-chip", "aria-pressed": String(on(i)), "data-head": i,
      onclick: () => app.update({ shown: toggled(i) }), ondblclick: () => app.update({ shown: [i], head: i }) }, mark,
        "H" + i);
  });
  const all = button("all", () => app.update({ shown: null }), { class: "asp-small" });
  const one = button("only H" + state.head, () => app.update({ shown: [state.head] }), { class: "asp-small" });
  return make("span", { class: "asp-chips" }, ...chips, all, one);
};

const layerKeys = (app) => make("span", { class: "asp-chips" },
  ...Array.from({ length: app.models[app.state.model].nLayer }, (_, i) => {
    const mark = make("span", { class: "asp-mark" });
    mark.style.background = lineColour(i);
    return make("button", { type: "button", class: "asp-chip",
      onclick: () => app.update({ every: false, layer: i }, true) }, mark, "L" + i);
  }));

const sentenceTools = (app) => {
  const { state } = app, last = app.models[state.model].nLayer - 1;
  const step = (by) => button(by < 0 ? "\u2039" : "\u203a", () => app.update({ layer: state.layer + by }),
    { class: "asp-small", "aria-label": by < 0 ? "layer before" : "next layer", disabled: state.layer + by < 0 ||
      state.layer + by > last });
  const layer = state.every ? [] : [step(-1), make("strong", { class: "asp-layer" }, "L" + state.layer), step(1)];
  const every = make("label", {}, make("input", { type: "checkbox", checked: state.every,
    onchange: (event) => app.update({ every: event.target.checked }, true) }), "all layers");
  const least = make("input", { type: "range", min: "0", max: "100", value: String(Math.round(100 * state.least)),
    "aria-label": "smallest weight of a line",
      oninput: (event) => app.update({ least: Number(event.target.value) / 100 }) });
  return make("div", { class: "asp-tools" }, ...layer, every, state.every ? layerKeys(app) : headChips(app),
    make("label", { class: "asp-least" }, "weights from", least, make("output", {}, state.least.toFixed(2))));
};

const sentenceView = (app) => [sentenceTools(app),
  make("div", { class: "asp-figures" }, ...app.models.map((_, index) => sentenceFigure(app, index)))];
