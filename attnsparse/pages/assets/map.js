// The map of one head: queries downwards, keys to the right.

const MAP_GAP = 6, ROW_STEP = 13, COLUMN_STEP = 19; // pixels between labels that can be read

const textWidths = (texts) => {
  const context = make("canvas").getContext("2d");
  context.font = "11px " + FONT;
  return texts.map((text) => context.measureText(text).width);
};

const mapLayout = (app, width) => {
  const { tokens } = app.data.prompts[app.state.prompt], size = tokens.length;
  const labels = tokens.map((token, i) => shortText(token, 14) + (token ? "  " : "") + (i + app.data.base));
  const longest = Math.ceil(Math.max(...textWidths(labels.slice(0, 400))));
  const left = longest + MAP_GAP + 4, top = Math.ceil(longest * 0.75) + MAP_GAP + 8, right = Math.ceil(longest * 0.7);
  const side = Math.max(120, Math.min(560, width - left - Math.min(right, 60), Math.max(app.room() - top, 220),
    58 * size));
  const cell = side / size, every = (step) => Math.max(1, Math.ceil(step / cell));
  return { size, labels, left, top, cell, side, rows: every(ROW_STEP), columns: every(COLUMN_STEP),
    width: Math.min(width, left + side + right), height: top + side + 2 };
};

const drawLabels = (context, at) => {
  context.font = "11px " + FONT;
  context.fillStyle = "#333";
  context.textAlign = "right";
  for (let i = 0; i < at.size; i += at.rows) {
    context.fillText(at.labels[i], at.left - MAP_GAP, at.top + (i + 0.5) * at.cell + 4);
  }
  context.textAlign = "left";
  for (let i = 0; i < at.size; i += at.columns) {
    context.save();
    context.translate(at.left + (i + 0.5) * at.cell + 3, at.top - MAP_GAP);
    context.rotate(-Math.PI / 4);
    context.fillText(at.labels[i], 0, 0);
    context.restore();
  }
};

// Open entries have a border where there is room, so that an open one is never taken for a closed one.
const drawBorders = (context, at, entries, head, look) => {
  if (at.cell < 7) return;
  entries.eachOpen(head, (q, k) => {
    const inside = look.circuit && look.circuit.has(head, q * at.size + k, look.n);
    context.strokeStyle = inside ? "#8c2d04" : "rgba(8,48,107,0.45)";
    context.lineWidth = inside ? 1.5 : 1;
    context.strokeRect(at.left + k * at.cell + 1, at.top + q * at.cell + 1, at.cell - 2, at.cell - 2);
  });
};

const drawMap = (app, model, head, at) => {
  const entries = model.entries(app.state.prompt), look = lookOf(app, model);
  const { canvas, context, ratio } = sharpCanvas(at.width, at.height, { tabindex: "0", role: "application",
    "aria-label": "Attention of " + model.nameOf(head) + " of " + model.name + ". Arrows move from entry to entry." });
  drawLabels(context, at);
  paintHead(context, entries, head, Math.round(at.left * ratio), Math.round(at.top * ratio),
    Math.round(at.side * ratio), look);
  context.strokeStyle = "#8a8a8a";
  context.lineWidth = 1;
  context.strokeRect(at.left - 0.5, at.top - 0.5, at.side + 1, at.side + 1);
  if (model.gated || look.circuit) drawBorders(context, at, entries, head, look);
  return canvas;
};

// The entry under the pointer; where cells are too small to hit, the open one that is nearest.
const entryAt = (event, at, entries, head) => {
  const x = (event.offsetX - at.left) / at.cell, y = (event.offsetY - at.top) / at.cell;
  const key = Math.floor(x), query = Math.floor(y);
  if (at.cell < 5) {
    let best = null, least = 6 / at.cell;
    entries.eachOpen(head, (q, k) => {
      const away = Math.hypot(q + 0.5 - y, k + 0.5 - x);
      if (away < least) { least = away; best = { query: q, key: k }; }
    });
    if (best) return best;
  }
  return key >= 0 && query < at.size && key <= query && query >= 0 ? { query, key } : null;
};

const mapFigure = (app, index, width) => {
  const model = app.models[index], state = app.state;
  if (state.layer >= model.nLayer || state.head >= model.nHead) {
    return make("figure", { class: "asp-figure" }, app.caption(index), make("p", {}, "This model has no such head."));
  }
  const head = state.layer * model.nHead + state.head, at = mapLayout(app, width);
  const entries = model.entries(state.prompt), canvas = drawMap(app, model, head, at);
  const chosen = newFrame("asp-chosen"), row = newFrame("asp-cross"), column = newFrame("asp-cross");
  const mark = (box, query, key) =>
    placeFrame(box, at.left + key * at.cell - 2, at.top + query * at.cell - 2, at.cell + 4, at.cell + 4);
  if (hasEntry(state)) mark(chosen, state.query, state.key);
  const leave = () => { row.hidden = column.hidden = true; hideTip(app); };
  canvas.addEventListener("pointermove", (event) => {
    const found = entryAt(event, at, entries, head);
    if (!found) { leave(); return; }
    placeFrame(row, at.left, at.top + found.query * at.cell, at.side, at.cell);
    placeFrame(column, at.left + found.key * at.cell, at.top, at.cell, at.side);
    placeTip(app, event, entryText(app, model, head, found.query, found.key));
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("click", (event) => {
    const found = entryAt(event, at, entries, head);
    app.update(found ? { ...found, model: index } : { query: null, key: null, model: index }, true);
  });
  return make("figure", { class: "asp-figure", "data-model": index }, app.caption(index, model.nameOf(head)),
    make("div", { class: "asp-canvas" }, canvas, row, column, chosen),
    make("figcaption", { class: "asp-axis" }, "rows: query, which reads; columns: key, which is read"));
};

const headView = (app) => {
  const width = app.figureWidth(400);
  return [make("div", { class: "asp-figures" }, ...app.models.map((_, index) => mapFigure(app, index, width))),
    scaleBar(app)];
};
