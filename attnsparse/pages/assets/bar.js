// The line above the views: which view, prompt and colours, and how much of a circuit is marked.

const viewTabs = (app) => make("div", { class: "asp-tabs", role: "tablist", "aria-label": "views" },
  ...Object.entries(VIEWS).map(([view, name]) => button(name, () => app.update({ view }, true),
    { role: "tab", "aria-selected": String(app.state.view === view), "data-view": view })));

const promptChoice = (app) => {
  const { prompts } = app.data;
  if (prompts.length === 1) return null;
  const options = prompts.map((prompt, i) => make("option", { value: i, selected: i === app.state.prompt },
    i + ": " + shortText(prompt.text || prompt.tokens.join(" "), 50)));
  return make("label", {}, "prompt", make("select", { class: "asp-prompt",
    onchange: (event) => app.update({ prompt: Number(event.target.value), query: null, key: null }, true) },
      ...options));
};

const shadeChoice = (app) => {
  const able = app.models.some((model) => model.gated && model.entries(app.state.prompt).scores);
  if (!able || !["heads", "head"].includes(app.state.view)) return null;
  return make("span", { class: "asp-tabs", role: "group", "aria-label": "colours" },
    ...["weight", "gate"].map((shade) =>
    button(shade, () => app.update({ shade, model: app.gatedModel() }),
      { "aria-pressed": String(app.state.shade === shade), "data-shade": shade })));
};

const circuitText = (app) => app.models.filter((model) => model.circuit).map((model) => {
  const found = model.circuit.explained(app.state.n);
  const name = app.models.filter((each) => each.circuit).length > 1 ? model.name + ": " : "";
  return name + (found ? "faithfulness " + number(found[1]) +
    (found[0] === app.state.n ? "" : " (best " + found[0] + ")") : "");
}).filter(Boolean).join(", ");

// Places of the slider: near its left end every number of items has one.
const SLIDER_STEPS = 1000;
const stepOf = (n, longest) => Math.round((SLIDER_STEPS * Math.log1p(n)) / Math.log1p(longest));
const itemsOf = (step, longest) => Math.round(Math.expm1((step / SLIDER_STEPS) * Math.log1p(longest)));

const circuitChoice = (app) => {
  const circuits = app.models.map((model) => model.circuit).filter((found) => found !== null);
  if (!circuits.length) return null;
  const { state } = app, longest = Math.max(...circuits.map((circuit) => circuit.length));
  const what = circuits[0].unit === "edge" ? "attention edges" : "heads";
  const all = [...new Set(circuits.map((circuit) => circuit.nAll.toLocaleString("en")))].join(" and ");
  const slider = make("input", { type: "range", class: "asp-n", min: "0", max: SLIDER_STEPS,
    value: stepOf(state.n, longest),
    disabled: !state.marked, "aria-label": "items of the circuit", "aria-valuetext": "best " + state.n,
    oninput: (event) => app.update({ n: itemsOf(Number(event.target.value), longest) }) });
  const check = make("input", { type: "checkbox", class: "asp-marked", checked: state.marked,
    onchange: (event) => app.update({ marked: event.target.checked }) });
  return make("div", { class: "asp-circuit" }, make("label", { title: circuits[0].about }, check, "circuit"), slider,
    make("output", {}, state.marked ? "best " + state.n + " of " + all + " " + what : "off"),
    make("span", { class: "asp-note" }, state.marked ? circuitText(app) : ""));
};

const crumbs = (app) => {
  const { state } = app, parts = [button("All heads",
    () => app.update({ view: "heads", query: null, key: null }, true), { class: "asp-link" })];
  if (state.view === "head" || hasEntry(state)) {
    parts.push(" \u203a ", button(headName(state.layer, state.head),
      () => app.update({ view: "head", query: null, key: null }, true), { class: "asp-link" }));
  }
  if (hasEntry(state)) parts.push(" \u203a ", tokenNode(app, state.key), " \u2192 ", tokenNode(app, state.query));
  return parts;
};

const HELP = [
  ["\u2190 \u2191 \u2192 \u2193", "move from head to head, in a map from entry to entry"],
  ["Enter", "open the head"],
  ["Escape", "one level up"],
  ["Shift + arrows", "next head or layer, the entry stays"],
  ["1 2 3 4", "heads, one head, sentence, entries"],
  ["m", "the other model"],
  ["p", "next prompt"],
  ["g", "colours: weight or expected gate"],
  ["c", "circuit on or off"],
  ["+ \u2212", "more or fewer items of the circuit"],
  ["?", "this help"],
];
const ABOUT = "A weight is an entry of the attention pattern. A contribution is |weight \u00b7 v W_O|, the size of " +
  "what the head writes. An exact effect is what the metric loses when this entry alone is ablated in the model.";

const helpBox = (app) => {
  const rows = HELP.map(([keys, what]) =>
    make("tr", {}, make("th", { scope: "row" }, make("kbd", {}, keys)), make("td", {}, what)));
  return make("div", { class: "asp-help", role: "dialog", "aria-label": "keys" }, make("h3", {}, "Keys"),
    make("table", {}, make("tbody", {}, ...rows)),
    make("p", { class: "asp-note" }, ABOUT),
    button("close", () => app.update({ help: false }), { class: "asp-small" }));
};
