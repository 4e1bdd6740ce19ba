// The keyboard.

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

const movedHead = (app, down, right) => {
  const { state } = app, model = app.models[state.model];
  return { layer: within(state.layer + down, 0, model.nLayer - 1),
    head: within(state.head + right, 0, model.nHead - 1) };
};

const movedEntry = (app, down, right) => {
  const { state } = app, model = app.models[state.model], size = model.prompts[state.prompt].tokens.length;
  if (!hasEntry(state)) {
    const best = model.entries(state.prompt).strongest(state.layer * model.nHead + state.head);
    return best ? { query: best.query, key: best.key } : { query: size - 1, key: 0 };
  }
  const query = within(state.query + down, 0, size - 1);
  return { query, key: within(state.key + right, 0, query) };
};

const movedToken = (app, down, right) => {
  const { state } = app, model = app.models[state.model], size = model.prompts[state.prompt].tokens.length;
  if (right) {
    const head = within(state.head + right, 0, model.nHead - 1);
    return { head, shown: [head], every: false };
  }
  return { query: state.query === null ? size - 1 : within(state.query + down, 0, size - 1), key: null };
};

const movedRow = (app, down) => {
  const index = app.state.model, model = app.models[index], { rows } = listedRows(app, model, defaultSort(app, model));
  const now = rows.findIndex((row) => isChosen(app, index, row)), row = rows[within(now + down, 0, rows.length - 1)];
  return row ? { layer: Math.floor(row.head / model.nHead), head: row.head % model.nHead, query: row.query,
    key: row.key } : {};
};

const moved = (app, [down, right], shift) => {
  const { view } = app.state;
  if (shift || view === "heads") return movedHead(app, down, right);
  if (view === "head") return movedEntry(app, down, right);
  return view === "sentence" ? movedToken(app, down, right) : movedRow(app, down);
};

// One level up: from an entry to its head, from there to all heads.
const oneUp = (state) => {
  if (state.help) return { help: false };
  if (state.query !== null || state.key !== null) return { query: null, key: null };
  return { view: "heads" };
};

const LETTERS = {
  m: (app) => ({ model: (app.state.model + 1) % app.models.length }),
  p: (app) => ({ prompt: (app.state.prompt + 1) % app.data.prompts.length, query: null, key: null }),
  g: (app) => ({ shade: app.state.shade === "gate" ? "weight" : "gate", model: app.gatedModel() }),
  c: (app) => ({ marked: !app.state.marked }),
  "+": (app) => ({ n: app.state.n + 1 }),
  "-": (app) => ({ n: app.state.n - 1 }),
  "?": (app) => ({ help: !app.state.help }),
};

const onKey = (app, event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const { key } = event, view = Object.keys(VIEWS)[Number(key) - 1];
  if (ARROWS[key]) app.update(moved(app, ARROWS[key], event.shiftKey), false);
  else if (key === "Escape") app.update(oneUp(app.state), true);
  else if (key === "Enter" && !event.shiftKey && app.state.view === "heads" &&
    !event.target.closest("button")) app.update({ view: "head" }, true);
  else if (view) app.update({ view }, true);
  else if (LETTERS[key]) app.update(LETTERS[key](app), false);
  else return;
  event.preventDefault();
  event.stopPropagation();
};
