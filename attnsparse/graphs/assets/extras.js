// What is shown beside the drawing: cards of features, groups, logits side by side, pinned nodes and their code.
// Names such as nodes, edges, make and link are those of graph.js, which is in the same scope after this file.

// ------------------------------------------------------------------------------------------------ cards

const tokenSpan = (token, share, isPeak) => {
  const span = make("span", isPeak ? { class: "peak" } : {}, token);
  if (share > 0) span.style.background = "rgba(230, 159, 0, " + (0.12 + 0.6 * share).toFixed(2) + ")";
  return span;
};
const contextLine = ({ tokens: shown, activations, at }) => {
  const most = Math.max(...activations, 1e-30);
  return make("li", { title: "activation " + number(activations[at]) },
    ...shown.map((token, i) => tokenSpan(token, activations[i] / most, i === at)));
};
const effectsLine = (title, pairs) => (pairs.length ? [make("p", {}, title + " ",
  ...pairs.flatMap(([token, effect]) => [make("span", { class: "word", title: number(effect) }, token), " "]))] : []);
const cardOf = (i) => {
  const card = graph.cards[i];
  if (!card) return [];
  return [make("h3", {}, "Feature"), make("p", {}, "active on " + percent(card.density) + " of the tokens of the text"),
    ...(card.contexts.length ? [make("ol", { class: "contexts" }, ...card.contexts.map(contextLine))] : []),
    ...effectsLine("raises", card.promoted), ...effectsLine("lowers", card.suppressed)];
};

// ----------------------------------------------------------------------------------------------- groups

const groupOf = (name) => graph.groups.find((group) => group.name === name);
// Sums of the edges in this page from one group of nodes to another.
const flow = (from, to) => {
  const sources = new Set(from), targets = new Set(to);
  return edges.weight.reduce((sum, weight, e) =>
    (sources.has(edges.source[e]) && targets.has(edges.target[e]) ? sum + weight : sum), 0);
};
const goGroup = (name) => link("#group=" + encodeURIComponent(name));
const groupButton = ({ name }) =>
  make("button", { type: "button", onclick: () => goGroup(name), "data-group": name }, name);
const groupTable = (rows, title) => make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "group"),
  make("th", {}, title))), make("tbody", {}, ...rows.map(([group, value]) =>
  make("tr", { class: value >= 0 ? "raises" : "lowers" }, make("td", {}, groupButton(group)),
    make("td", {}, number(value))))));
const groupList = () => (graph.groups.length ? [make("h3", {}, "Groups"), make("table", { id: "groups" },
  make("tbody", {}, ...graph.groups.map((group) => make("tr", {}, make("td", {}, groupButton(group)),
    make("td", {}, group.nodes.length + (group.nodes.length === 1 ? " node" : " nodes"))))))] : []);
const showGroup = (group) => {
  const inside = new Set(group.nodes), others = graph.groups.filter((other) => other !== group);
  const both = edges.source.map((_, e) => e).filter((e) => inside.has(edges.source[e]) || inside.has(edges.target[e]));
  mark(group.nodes, both, group.nodes);
  byId("g" + graph.groups.indexOf(group)).classList.add("open");
  const rows = (pick) => others.map((other) => [other, pick(other)]).filter(([, value]) => value !== 0);
  const into = rows((other) => flow(other.nodes, group.nodes)), out = rows((other) => flow(group.nodes, other.nodes));
  const logits = nodes.kind.flatMap((kind, i) => (kind === "logit" ? [i] : []));
  const pinAll = make("button", { type: "button", class: "pin-all",
    onclick: () => setPins([...new Set([...pins, ...group.nodes])]) }, "pin all");
  show(make("h2", {}, group.name), make("p", {}, pinAll), make("p", {}, group.nodes.length +
    " nodes; direct edges to the logits sum to " + number(flow(group.nodes, logits))),
      ...(into.length ? [make("h3", {}, "From other groups"), groupTable(into, "sum of edges")] : []),
  ...(out.length ? [make("h3", {}, "To other groups"), groupTable(out, "sum of edges")] : []),
    make("h3", {}, "Members"),
  make("p", {}, ...group.nodes.flatMap((i) =>
    [make("button", { type: "button", onclick: () => goNode(i), "data-node": i },
    nodes.label[i]), " "])));
};

const goBox = (id) => {
  if (id.startsWith("gn")) goNode(Number(id.slice(2)));
  else goGroup(graph.groups[Number(id.slice(1))].name);
};

// ----------------------------------------------------------------------------------- logits side by side

const MAX_SOURCES = 12;
const logitTable = () => {
  const logits = nodes.kind.flatMap((kind, i) => (kind === "logit" ? [i] : []));
  if (logits.length < 2) return [];
  const listed = graph.direct.source.map((i, row) => [i, graph.direct.weight[row]])
    .filter(([i]) => !byId("n" + i).classList.contains("hushed")).slice(0, MAX_SOURCES);
  const cell = (i, t, weight) => {
    const e = edgeOf.get(i + "," + t);
    return make("td", { class: weight >= 0 ? "up" : "down" }, e === undefined ? number(weight)
      : make("button", { type: "button", onclick: () => goEdge(e), "data-edge": e }, number(weight)));
  };
  const head = make("tr", {}, make("th", {}, "source"), ...logits.map((t) => make("th", {}, make("button",
    { type: "button", onclick: () => goNode(t), "data-node": t }, nodes.label[t]))));
  const rows = listed.map(([i, weights]) => make("tr", {}, make("td", {}, make("button",
    { type: "button", onclick: () => goNode(i), "data-node": i }, nodes.label[i])),
    ...logits.map((t, column) => cell(i, t, weights[column]))));
  return [make("h3", {}, "Logits side by side"), make("p", {}, "direct edges, before this page pruned any, the " +
    rows.length + " largest sources"),
    make("table", { id: "logits" }, make("thead", {}, head), make("tbody", {}, ...rows))];
};

// ------------------------------------------------------------------------------------------------- pins

let pins = [];
const pinsText = () => (pins.length ? "&pins=" + pins.map((i) => encodeURIComponent(nodes.id[i])).join(",") : "");
const CHECKED = new Set(["error", "token", "position"]);
// What to type for the nodes that were pinned: JSON's strings, numbers and lists are Python's as well.
const codeOf = (chosen) => {
  const features = chosen.filter((i) => nodes.kind[i] === "feature");
  const ids = chosen.filter((i) => CHECKED.has(nodes.kind[i])).map((i) => JSON.stringify(nodes.id[i]));
  return [...(features.length ? steering(features) : []), ...(ids.length ? [
    "# graph: the whole one, with its model; what these nodes write is removed",
    "graph.check([" + ids.join(", ") + "], together=True)"] : [])].map((line) => line + "\n").join("");
};
const steering = (features) => {
  const how = byId("how").value, amount = Number.parseFloat(byId("amount").value) || 0;
  const logits = nodes.kind.flatMap((kind, i) => (kind === "logit" && nodes.feature[i] >= 0 ? [nodes.feature[i]] : []));
  return ["import attnsparse as asp", "", "model = asp.load(" + JSON.stringify(graph.model) + ")  # or the path",
    "transcoders = asp.load_transcoders(" + JSON.stringify(graph.transcoders) + ", model)  # or the path",
    "prompt = " + JSON.stringify(graph.token_ids), "changes = {  # (layer, feature, position)",
    ...features.map((i) => "    (" + nodes.layer[i] + ", " + nodes.feature[i] + ", " + nodes.position[i] + "): " +
      amount + ","), "}",
    "patch = transcoders.steer(changes" + (how === "add" ? "" : ", " + JSON.stringify(how)) + ")",
    "before, after = model.run(prompt), model.run(prompt, patch=patch)",
    "change = after.logits[-1] - before.logits[-1]",
    ...(logits.length ? ["logits = " + JSON.stringify(logits),
      "print(dict(zip(model.to_str_tokens(logits), change[logits].tolist())))"] : ["print(change)"])];
};
const pinButton = (i) => make("button", { type: "button", class: "pin", "aria-pressed": String(pins.includes(i)),
  onclick: () => setPins(pins.includes(i) ? pins.filter((j) => j !== i) : [...pins, i]) }, pins.includes(i) ? "unpin"
    : "pin");
const setPins = (next) => {
  const [kept] = state.split("&pins=");
  pins = next;
  setState((kept || "#") + pinsText());
  showPins();
};
const copyCode = (code, box) => {
  const said = (text) => { box.textContent = text; };
  const byHand = () => { // in a frame the clipboard may be closed to scripts: the code is then selected
    getSelection().selectAllChildren(byId("pin-code"));
    said(document.execCommand("copy") ? "copied" : "selected: press Ctrl+C");
  };
  if (framed || !navigator.clipboard) { byHand(); return; }
  navigator.clipboard.writeText(code).then(() => said("copied"), byHand);
};
const showPins = () => {
  const panel = byId("pins"), code = codeOf(pins), only = pins.length > 0 && byId("only").checked;
  panel.hidden = !pins.length;
  byId("pin-list").replaceChildren(...pins.map((i) => make("li", {}, make("button",
    { type: "button", onclick: () => goNode(i), "data-node": i }, nodes.label[i]), " ", make("button", { type: "button",
    class: "unpin", "aria-label": "unpin " + nodes.label[i], onclick: () => setPins(pins.filter((j) => j !== i)) },
      "\u00d7"))));
  byId("pin-code").textContent = code;
  byId("steering").hidden = !pins.some((i) => nodes.kind[i] === "feature");
  byId("pin-copy").hidden = !code;
  const inside = new Set(pins);
  nodes.id.forEach((_, i) => {
    byId("n" + i).classList.toggle("pinned", inside.has(i));
    hush("n" + i, "aside", only && !inside.has(i));
    hushLabel(i, "aside", only && !inside.has(i));
  });
  edges.source.forEach((s, e) => hush("e" + e, "aside", only && !(inside.has(s) && inside.has(edges.target[e]))));
};

// ------------------------------------------------------------------------------ biases and positions

const PLAIN = new Set(["bias", "position", "other"]);
const hush = (id, kind, off) => byId(id).classList.toggle(kind, off);
const hushLabel = (i, kind, off) => {
  const label = drawing.querySelector('.label[data-node="' + i + '"]');
  if (label) label.classList.toggle(kind, off);
};
const showPlain = () => {
  const off = !byId("plain").checked, isPlain = (i) => PLAIN.has(nodes.kind[i]);
  nodes.id.forEach((_, i) => {
    if (isPlain(i)) { hush("n" + i, "hushed", off); hushLabel(i, "hushed", off); }
  });
  edges.source.forEach((s, e) => { if (isPlain(s) || isPlain(edges.target[e])) hush("e" + e, "hushed", off); });
};
