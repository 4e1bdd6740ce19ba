// The page of a graph: selection, lists, heads and maps, search, pointer, keyboard.

const graph = JSON.parse(document.getElementById("graph-data").textContent);
const { nodes, edges, tokens, base } = graph;
const byId = (id) => document.getElementById(id);
const drawing = byId("drawing"), view = byId("view"), details = byId("details");
const query = byId("query"), found = byId("found"), drawn = byId("drawn");
const numberOf = new Map(nodes.id.map((id, i) => [id, i]));
const edgeOf = new Map(edges.source.map((s, e) => [s + "," + edges.target[e], e]));
const places = nodes.id.map((_, i) => {
  const [x, y] = byId("n" + i).getAttribute("transform").match(/[\d.]+/g).map(Number);
  return { x, y };
});
const incoming = nodes.id.map(() => []), outgoing = nodes.id.map(() => []);
edges.source.forEach((s, e) => { outgoing[s].push(e); incoming[edges.target[e]].push(e); });

// ------------------------------------------------------------------------------------------ texts

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const number = (value) => {
  if (value === null) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 9999.5 || size < 0.0005) return value.toExponential(2);
  return size >= 999.5 ? value.toFixed(0) : value.toPrecision(3);
};
const percent = (share) => (Number.isFinite(share) ? (100 * share).toFixed(1) + " %" : "");
const place = (i) => {
  const parts = [];
  if (nodes.kind[i] === "feature" || nodes.kind[i] === "error") parts.push("layer " + nodes.layer[i]);
  const p = nodes.position[i];
  if (p >= 0 && nodes.kind[i] === "token") parts.push("position " + (p + base));
  else if (p >= 0 && nodes.kind[i] === "position") parts.push("at " + tokens[p]);
  else if (p >= 0) parts.push("position " + (p + base) + " " + tokens[p]);
  return parts.join(", ");
};
const headName = (head) => "L" + Math.floor(head / graph.n_head) + "H" + (head % graph.n_head);

// -------------------------------------------------------------------------------------- selection

const mark = (chosenNodes, chosenEdges, picked) => {
  const marked = drawing.querySelectorAll(".on, .picked, .open");
  for (const element of marked) element.classList.remove("on", "picked", "open");
  drawing.classList.toggle("chosen", picked.length > 0);
  for (const i of chosenNodes) {
    byId("n" + i).classList.add("on");
    const label = drawing.querySelector('.label[data-node="' + i + '"]');
    if (label) label.classList.add("on");
  }
  for (const e of chosenEdges) byId("e" + e).classList.add("on");
  for (const i of picked) byId("n" + i).classList.add("picked");
};
const show = (...content) => { details.replaceChildren(...content); details.scrollTop = 0; };
// Inside another page, as in a notebook, the state is kept here: its address and its history are not ours.
const framed = location.protocol === "about:" || window.parent !== window;
let state = location.hash;
const setState = (hash) => {
  state = hash;
  if (!framed && location.hash !== hash) location.hash = hash;
  else follow();
};
const link = (hash) => setState(hash + pinsText());
const goNode = (i) => link("#node=" + encodeURIComponent(nodes.id[i]));
const goEdge = (e) => link("#edge=" + encodeURIComponent(nodes.id[edges.source[e]]) + "," +
  encodeURIComponent(nodes.id[edges.target[e]]));

const edgeTable = (listed, other) => {
  const body = make("tbody");
  for (const e of listed) {
    const i = other[e], target = edges.target[e];
    const name = make("button", { type: "button", onclick: () => goEdge(e), "data-edge": e }, nodes.label[i]);
    const where = place(i);
    body.append(make("tr", { class: edges.weight[e] >= 0 ? "raises" : "lowers" },
      make("td", {}, name, ...(where ? [" ", make("span", { class: "place" }, where)] : [])),
      make("td", {}, number(edges.weight[e])), make("td", {}, percent(edges.weight[e] / nodes.value[target]))));
  }
  return make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "label"), make("th", {}, "weight"),
    make("th", { title: "weight / value of the target" }, "share"))), body);
};
const edgeList = (title, listed, other, about) => [make("h3", {}, title + " (" + listed.length + ")"),
  ...(listed.length ? [make("p", {}, about), edgeTable(listed, other)] : [make("p", {}, "none in this page")])];

const showNode = (i) => {
  const facts = [nodes.kind[i] + ", id " + nodes.id[i], place(i)];
  const value = nodes.value[i];
  if (value !== null) facts.push((nodes.kind[i] === "logit" ? "value " : "activation ") + number(value));
  if (nodes.probability[i] !== null) facts.push("probability " + number(nodes.probability[i]));
  const sum = incoming[i].reduce((all, e) => all + edges.weight[e], 0);
  mark([i, ...incoming[i].map((e) => edges.source[e]), ...outgoing[i].map((e) => edges.target[e])],
    [...incoming[i], ...outgoing[i]], [i]);
  show(make("h2", {}, nodes.label[i]), make("p", {}, pinButton(i)),
    ...facts.filter(Boolean).map((text) => make("p", {}, text)),
    ...cardOf(i),
    ...(value === null ? [] : edgeList("Incoming edges", incoming[i], edges.source,
      "They sum to " + number(sum) + " of " + number(value) + "; the rest was pruned or is not in this page.")),
    ...edgeList("Outgoing edges", outgoing[i], edges.target, "Shares are of the targets' values."));
};

const showEdge = (e) => {
  const s = edges.source[e], t = edges.target[e];
  mark([s, t], [e], [s, t]);
  const key = nodes.position[s], query = nodes.position[t];
  const to = (i) => make("button", { type: "button", onclick: () => goNode(i), "data-node": i }, nodes.label[i]);
  const whole = edges.weight[e], share = nodes.value[t] ? whole / nodes.value[t] : NaN;
  const facts = "weight " + number(whole) +
    (Number.isFinite(share) ? ", " + percent(share) + " of the target's value" : "");
  const ends = [s, t].map((i) => place(i) || nodes.label[i]).join(" \u2192 ");
  const content = [make("h2", {}, to(s), " \u2192 ", to(t)), make("p", {}, facts), make("p", {}, ends)];
  show(...content, ...(key < 0
    ? [make("p", {}, "This source is at no position: all of it counts as remainder, none as a head's.")]
    : !edges.heads ? [make("p", {}, "This graph was saved without what splits edges by head.")]
    : headsOf(e, key, query)));
};

const headsOf = (e, key, query) => {
  const whole = edges.weight[e], body = make("tbody"), n = graph.n_layer * graph.n_head;
  const row = (name, value, entry, kind) => body.append(make("tr", { class: kind }, make("td", {}, name),
    make("td", {}, number(Math.abs(value) < 1e-6 * Math.abs(whole) ? 0 : value)),
    make("td", {}, percent(value / whole)), make("td", {}, entry)));
  const sign = (value) => (value >= 0 ? "raises" : "lowers");
  edges.heads[e].forEach((head, i) => row(headName(head), edges.loadings[e][i], edges.patterns[e][i].toFixed(3),
    "head " + sign(edges.loadings[e][i])));
  const listed = edges.heads[e].length, entry = (key + base) + " \u2192 " + (query + base);
  if (n > listed) row((n - listed) + " other heads", edges.rest[e], "", "other");
  if (key === query) row("direct", edges.direct[e], "", "direct");
  else row("remainder", edges.remainder[e], "", "remainder");
  row("edge", whole, "", "sum");
  const about = key === query
    ? "Within one position: direct is the residual stream alone, a head's loading what made its last hop through it."
    : "A head's loading is what hops from key " + (key + base) + " to query " + (query + base) +
      " through its entry of the pattern; the remainder visits other positions.";
  const top = make("tr", {}, ...["head", "loading", "share", "entry"].map((title) => make("th", {}, title)));
  const maps = edges.heads[e].map((head, i) => mapOf(head, key, query, edges.loadings[e][i] / whole));
  return [make("h3", {}, "Heads"), make("p", {}, about),
    make("table", { id: "heads" }, make("thead", {}, top), body),
    ...(maps.length ? [make("h3", {}, "Their attention, entry " + entry + " marked"),
      make("div", { id: "maps" }, ...maps)] : [])];
};

// ------------------------------------------------------------------------------------------- maps

const COLOURS = [[255, 255, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];
const colour = (value) => {
  const at = (value / 255) * (COLOURS.length - 1), low = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[low].map((c, i) => Math.round(c + (at - low) * (COLOURS[low + 1][i] - c)));
};
const mapOf = (head, key, query, share) => {
  const size = tokens.length, bytes = atob(graph.maps[head]);
  const canvas = make("canvas", { width: size, height: size });
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  for (let q = 0, at = 0; q < size; q++) { // grey: keys after the query
    for (let k = 0; k < size; k++) {
      const shade = k <= q ? colour(bytes.charCodeAt(at++)) : [240, 240, 240];
      image.data.set([...shade, 255], 4 * (q * size + k));
    }
  }
  context.putImageData(image, 0, 0);
  const svg = document.createElementNS(drawing.namespaceURI, "svg");
  const box = document.createElementNS(drawing.namespaceURI, "rect");
  svg.setAttribute("viewBox", "0 0 " + size + " " + size);
  for (const [name, value] of [["x", key], ["y", query], ["width", 1], ["height", 1]]) box.setAttribute(name, value);
  svg.append(box);
  const text = headName(head) + "  " + percent(share);
  return make("figure", { "aria-label": "attention of " + text }, make("div", { class: "map" }, canvas, svg),
    make("figcaption", {}, text));
};

// ----------------------------------------------------------------------------------------- search

const search = () => {
  const text = query.value.trim().toLowerCase();
  for (const element of drawing.querySelectorAll(".match")) element.classList.remove("match");
  const hits = !text ? [] : nodes.id.map((_, i) => i).filter((i) =>
    [nodes.label[i], nodes.id[i], place(i)].some((part) => part.toLowerCase().includes(text)));
  for (const i of hits) byId("n" + i).classList.add("match");
  found.replaceChildren(...hits.slice(0, 100).map((i) => make("li", {}, make("button",
    { type: "button", "data-node": i, onclick: () => { found.hidden = true; goNode(i); } },
    nodes.label[i] + "  (" + [nodes.kind[i], place(i)].filter(Boolean).join(", ") + ")"))));
  if (text && hits.length !== Math.min(hits.length, 100)) found.append(make("li", {}, (hits.length - 100) + " more"));
  if (text && !hits.length) found.append(make("li", {}, "nothing found"));
  found.hidden = !text;
};
query.addEventListener("input", search);
query.addEventListener("focus", () => { found.hidden = !query.value.trim(); });
byId("search").addEventListener("keydown", (event) => {
  const buttons = [...found.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  if (event.key === "ArrowDown" && buttons.length) buttons[Math.min(at + 1, buttons.length - 1)].focus();
  else if (event.key === "ArrowUp" && at >= 0) (at ? buttons[at - 1] : query).focus();
  else if (event.key === "Enter" && at < 0 && buttons.length) buttons[0].click();
  else if (event.key === "Escape") { query.value = ""; search(); query.focus(); }
  else return;
  event.preventDefault();
  event.stopPropagation();
});
document.addEventListener("click", (event) => { if (!event.target.closest("#search")) found.hidden = true; });

// ---------------------------------------------------------------------------- pointer and keyboard

const STEPS = 32, REACH = 7; // points along an edge; pixels around it that count as on it
const samples = edges.source.map((_, e) => {
  const p = byId("e" + e).getAttribute("d").match(/-?[\d.]+/g).map(Number), line = [];
  for (let i = 0; i <= STEPS; i++) {
    const b = i / STEPS, a = 1 - b, w = [a * a * a, 3 * a * a * b, 3 * a * b * b, b * b * b];
    line.push([0, 1].map((d) => w[0] * p[d] + w[1] * p[2 + d] + w[2] * p[4 + d] + w[3] * p[6 + d]));
  }
  return line;
});
const distance = (x, y, [ax, ay], [bx, by]) => {
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  const at = length ? Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return Math.hypot(x - ax - at * dx, y - ay - at * dy);
};
const isShown = (e) => {
  const { classList } = byId("e" + e);
  if (drawing.classList.contains("grouped")) return false;
  if (classList.contains("hushed") || classList.contains("aside")) return false;
  return classList.contains("on") || (!classList.contains("off") && !drawing.classList.contains("chosen"));
};
const nearestEdge = (event) => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
  let best = -1, least = REACH;
  samples.forEach((line, e) => {
    if (!isShown(e)) return;
    for (let i = 0; i < STEPS; i++) {
      const away = distance(at.x, at.y, line[i], line[i + 1]);
      if (away < least) { least = away; best = e; }
    }
  });
  return best;
};
drawing.addEventListener("click", (event) => {
  const node = event.target.closest(".node"), box = event.target.closest(".supernode");
  const e = node ? -1 : nearestEdge(event);
  if (box) goBox(box.id);
  else if (node) goNode(Number(node.id.slice(1)));
  else if (e >= 0) goEdge(e);
  else link("#");
});
drawing.addEventListener("pointermove", (event) => {
  const e = event.target.closest(".node") ? -1 : nearestEdge(event);
  for (const element of drawing.querySelectorAll(".near")) element.classList.remove("near");
  if (e >= 0) byId("e" + e).classList.add("near");
  drawing.classList.toggle("over", e >= 0);
});

let current = 0;
const focusNode = (i) => {
  byId("n" + current).setAttribute("tabindex", "-1");
  current = i;
  byId("n" + i).setAttribute("tabindex", "0");
  byId("n" + i).focus();
};
const neighbour = (i, dx, dy) => {
  let best = i, least = Infinity;
  places.forEach(({ x, y }, j) => {
    const along = (x - places[i].x) * dx + (y - places[i].y) * dy;
    const aside = Math.abs((x - places[i].x) * dy) + Math.abs((y - places[i].y) * dx);
    if (j !== i && along > 1 && along + 3 * aside < least) { least = along + 3 * aside; best = j; }
  });
  return best;
};
const STEP = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
drawing.addEventListener("keydown", (event) => {
  const box = event.target.closest(".supernode");
  if (box && (event.key === "Enter" || event.key === " ")) { goBox(box.id); event.preventDefault(); return; }
  const node = event.target.closest(".node"), i = node ? Number(node.id.slice(1)) : -1;
  if (i < 0) return;
  if (event.key === "Enter" || event.key === " ") goNode(i);
  else if (STEP[event.key]) focusNode(neighbour(i, ...STEP[event.key]));
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input")) return;
  if (event.key === "/") query.focus();
  else if (event.key === "Escape") link("#");
  else if (event.key === "+") zoom(scale * 1.25);
  else if (event.key === "-") zoom(scale / 1.25);
  else return;
  event.preventDefault();
});

// --------------------------------------------------------------------------------------- the view

const natural = drawing.viewBox.baseVal;
let scale = 1;
const zoom = (wanted) => {
  scale = Math.max(0.2, Math.min(6, wanted));
  drawing.setAttribute("width", natural.width * scale);
  drawing.setAttribute("height", natural.height * scale);
};
const fit = (smallest) => {
  const across = (view.clientWidth - 2) / natural.width;
  const upwards = (parseFloat(getComputedStyle(view).maxHeight) - 4) / natural.height;
  zoom(Math.max(smallest, Math.min(1.6, across, upwards)));
};
byId("larger").addEventListener("click", () => zoom(scale * 1.25));
byId("smaller").addEventListener("click", () => zoom(scale / 1.25));
byId("fit").addEventListener("click", () => fit(0));
const showDrawn = () => {
  edges.source.forEach((_, e) => byId("e" + e).classList.toggle("off", e >= Number(drawn.value)));
  byId("drawn-text").textContent = drawn.value + " strongest of " + edges.source.length;
};
drawn.addEventListener("input", showDrawn);
byId("plain").addEventListener("input", () => { showPlain(); follow(); });
byId("grouped").addEventListener("input", () => drawing.classList.toggle("grouped", byId("grouped").checked));
for (const id of ["only", "how", "amount"]) byId(id).addEventListener("input", showPins);
byId("pin-copy").addEventListener("click", () => copyCode(codeOf(pins), byId("pin-said")));
byId("unpin-all").addEventListener("click", () => setPins([]));

// [[kind, ids], ["pins", ids]] of an address; a broken link names nothing.
const linkParts = (hash) => {
  const [main, pinned] = hash.slice(1).split("&pins=");
  const idsOf = (text) => { try { return (text || "").split(",").map(decodeURIComponent); } catch { return []; } };
  const [kind, rest] = main.split("=");
  return [[kind, idsOf(rest)], ["pins", idsOf(pinned)]];
};
const follow = () => {
  const [[kind, ids], [, kept]] = linkParts(state);
  pins = [...new Set(kept.map((id) => numberOf.get(id)).filter((i) => i !== undefined))];
  showPins();
  const numbers = ids.map((id) => numberOf.get(id));
  const e = edgeOf.get(numbers.join(","));
  if (kind === "node" && numbers.length === 1 && numbers[0] !== undefined) showNode(numbers[0]);
  else if (kind === "edge" && e !== undefined) showEdge(e);
  else if (kind === "group" && groupOf(ids[0])) showGroup(groupOf(ids[0]));
  else {
    mark([], [], []);
    const text = ["node", "edge", "group"].includes(kind)
      ? "This page has no " + kind + " " + ids.join(" \u2192 ") + "."
      : "Click a node for its edges, an edge for the heads that carry it. Keys: / searches, Tab and arrows go " +
        "through the nodes, Enter chooses, Escape clears, + and - zoom.";
    show(make("p", {}, text), ...groupList(), ...logitTable());
  }
};
window.addEventListener("hashchange", () => { state = location.hash; follow(); });
byId("n0").setAttribute("tabindex", "0");
fit(0.7);
view.scrollLeft = view.scrollWidth; // the logits are at the end
showDrawn();
follow();
