// All heads of the models: one row per layer.

const GRID_LEFT = 30, GRID_TOP = 18, GRID_GAP = 5;

const gridLayout = (app, model, width) => {
  const wide = Math.floor((width - GRID_LEFT) / model.nHead) - GRID_GAP;
  const tall = Math.floor((app.room() - GRID_TOP) / model.nLayer) - GRID_GAP;
  const most = model.nLayer > 8 ? 76 : model.nLayer > 4 ? 96 : 130;
  const side = Math.max(16, Math.min(most, wide, Math.max(tall, 34)));
  return { side, step: side + GRID_GAP, width: GRID_LEFT + model.nHead * (side + GRID_GAP),
    height: GRID_TOP + model.nLayer * (side + GRID_GAP) };
};

const lookOf = (app, model) => {
  const { marked, n, shade } = app.state;
  return { shade: model.gated && model.entries(app.state.prompt).scores ? shade : "weight", floor: model.floor,
    circuit: marked ? model.circuit : null, n };
};

const drawGrid = (app, model, at) => {
  const entries = model.entries(app.state.prompt), look = lookOf(app, model);
  const { canvas, context, ratio } = sharpCanvas(at.width, at.height, { tabindex: "0", role: "application",
    "aria-label": "Heads of " + model.name + ", one row per layer. Arrows move, Enter opens a head." });
  context.font = "11px " + FONT;
  context.fillStyle = "#555";
  for (let head = 0; head < model.nHeads; head++) {
    const layer = Math.floor(head / model.nHead), number = head % model.nHead;
    const x = GRID_LEFT + number * at.step, y = GRID_TOP + layer * at.step;
    if (number === 0) {
      context.textAlign = "right";
      context.fillText("L" + layer, GRID_LEFT - 6, y + at.side / 2 + 4);
    }
    if (layer === 0) {
      context.textAlign = "center";
      context.fillText("H" + number, x + at.side / 2, GRID_TOP - 6);
    }
    paintHead(context, entries, head, Math.round(x * ratio), Math.round(y * ratio), Math.round(at.side * ratio), look);
    const inside = look.circuit && look.circuit.countOf(head, look.n) > 0;
    context.strokeStyle = inside ? "#d55e00" : entries.countOpen(head) ? "#b4bac2" : "#e3e6ea";
    context.lineWidth = inside ? 2 : 1;
    context.strokeRect(x - 0.5, y - 0.5, at.side + 1, at.side + 1);
  }
  return canvas;
};

const gridHeadText = (app, model, head) => {
  const entries = model.entries(app.state.prompt), best = entries.strongest(head), n = entries.countOpen(head);
  const parts = [model.nameOf(head)];
  if (model.circuit && app.state.marked) parts.push(counted(model.circuit.countOf(head, app.state.n), "item") +
    " of the circuit");
  if (model.gated) parts.push(n + " open");
  if (best) parts.push("strongest " + number(best.weight) + ": " + tokenText(app, best.key) + " \u2192 " +
    tokenText(app, best.query));
  return parts.join(", ");
};

const gridFigure = (app, index, width) => {
  const model = app.models[index], at = gridLayout(app, model, width), state = app.state;
  const canvas = drawGrid(app, model, at);
  const chosen = newFrame("asp-chosen"), near = newFrame("asp-near");
  const frame = (box, head) => placeFrame(box, GRID_LEFT + (head % model.nHead) * at.step - 3,
    GRID_TOP + Math.floor(head / model.nHead) * at.step - 3, at.side + 6, at.side + 6);
  if (index === state.model) frame(chosen, state.layer * model.nHead + state.head);
  const headAt = (event) => {
    const column = Math.floor((event.offsetX - GRID_LEFT) / at.step),
      row = Math.floor((event.offsetY - GRID_TOP) / at.step);
    const inside = column >= 0 && column < model.nHead && row >= 0 && row < model.nLayer;
    return inside ? row * model.nHead + column : -1;
  };
  canvas.addEventListener("pointermove", (event) => {
    const head = headAt(event);
    near.hidden = head < 0;
    if (head < 0) { hideTip(app); return; }
    frame(near, head);
    placeTip(app, event, gridHeadText(app, model, head));
  });
  canvas.addEventListener("pointerleave", () => { near.hidden = true; hideTip(app); });
  canvas.addEventListener("click", (event) => {
    const head = headAt(event);
    if (head >= 0) app.update({ view: "head", model: index, layer: Math.floor(head / model.nHead),
      head: head % model.nHead }, true);
  });
  return make("figure", { class: "asp-figure", "data-model": index }, app.caption(index),
    make("div", { class: "asp-canvas" }, canvas, near, chosen));
};

const headsView = (app) => {
  const width = app.figureWidth(300);
  return [make("div", { class: "asp-figures" }, ...app.models.map((_, index) => gridFigure(app, index, width))),
    scaleBar(app)];
};

// What the colours mean.
const scaleBar = (app) => {
  const isGate = (model) => lookOf(app, model).shade === "gate";
  const names = app.state.shade === "gate" ? [["gate", "expected gate, sigmoid(score + bias)"],
    ...app.models.filter((model) => !isGate(model)).map((model) => ["weight", "weight, " + model.name])]
    : [["weight", app.models[0].value === "weight" ? "weight of the entry" : "share of the largest |score|"]];
  if (app.state.marked && app.state.shade !== "gate") {
    names.push(["circuit", "in the circuit"], ["faded", "outside it"]);
  }
  const bars = names.map(([name, text]) => {
    const { canvas, context } = sharpCanvas(72, 10, { "aria-hidden": "true" });
    for (let i = 0; i < 72; i++) {
      context.fillStyle = cssColour(name, i / 71);
      context.fillRect(i, 0, 1, 10);
    }
    return make("span", { class: "asp-scale" }, "0 ", canvas, " 1 ", make("span", {}, text));
  });
  return make("p", { class: "asp-scales" }, ...bars);
};
