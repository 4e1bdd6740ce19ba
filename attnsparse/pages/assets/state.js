// What is looked at: a plain object, also written after the # of the address.
//
// view: "heads", "head", "sentence" or "list". query and key are null where no entry is chosen. shown: heads of
// the layer in the sentence view; every: those of all layers. n: items of the circuit that are marked.

const VIEWS = { heads: "Heads", head: "One head", sentence: "Sentence", list: "Entries" };

// The head with the strongest entry of the first prompt, by what is known best.
const strongestHead = (model) => {
  const entries = model.entries(0);
  const [best] = largest(1, (add) => {
    for (let head = 0; head < model.nHeads; head++) {
      entries.eachOpen(head, (query, key, weight) => {
        const effect = entries.effects ? entries.effects.get(head, query * entries.size + key) : undefined;
        const size = entries.norm ? entries.contribution(head, key, weight) : weight;
        add(effect === undefined ? size : 1e6 + Math.abs(effect), head);
      });
    }
  });
  return best || 0;
};

const firstState = (models) => {
  const circuits = models.map((model) => model.circuit).filter((found) => found !== null);
  const n = Math.min(...circuits.map((circuit) =>
    (circuit.first === null ? Math.min(20, circuit.length) : circuit.first)));
  const head = strongestHead(models[0]), { nHead } = models[0];
  return { view: "heads", prompt: 0, model: 0, layer: Math.floor(head / nHead), head: head % nHead, query: null,
    key: null, shade: "weight",
    shown: null, every: false, least: models.some((model) => !model.gated) ? 0.05 : 0, sort: null, filter: "",
    marked: circuits.length > 0, n: circuits.length ? n : 0, help: false };
};

const within = (value, low, high) => (Number.isInteger(value) ? Math.max(low, Math.min(high, value)) : low);

// A state that these models have.
const settled = (state, models) => {
  const next = { ...state };
  next.prompt = within(next.prompt, 0, models[0].prompts.length - 1);
  next.model = within(next.model, 0, models.length - 1);
  const model = models[next.model], size = model.prompts[next.prompt].tokens.length;
  next.layer = within(next.layer, 0, model.nLayer - 1);
  next.head = within(next.head, 0, model.nHead - 1);
  if (!(next.view in VIEWS)) next.view = "heads";
  if (next.query !== null) next.query = within(next.query, 0, size - 1);
  if (next.key !== null) next.key = within(next.key, 0, next.query === null ? size - 1 : next.query);
  if (next.shade !== "gate" || !model.gated || model.entries(next.prompt).scores === null) next.shade = "weight";
  const longest = Math.max(0, ...models.map((each) => (each.circuit ? each.circuit.length : 0)));
  next.n = within(next.n, 0, longest);
  if (!longest) next.marked = false;
  return next;
};

const hashOf = (state, base, models) => {
  const parts = [["view", state.view]];
  if (models[0].prompts.length > 1) parts.push(["prompt", state.prompt]);
  if (models.length > 1) parts.push(["model", state.model]);
  parts.push(["layer", state.layer], ["head", state.head]);
  for (const name of ["query", "key"]) if (state[name] !== null) parts.push([name, state[name] + base]);
  if (state.marked) parts.push(["n", state.n]);
  if (state.shade !== "weight") parts.push(["shade", state.shade]);
  if (state.every) parts.push(["layers", "all"]);
  return "#" + parts.map(([name, value]) => name + "=" + encodeURIComponent(value)).join("&");
};

// What an address asks for, over a state. Names that are not known and numbers that are none count for nothing.
const stateOf = (hash, state, base) => {
  const asked = new URLSearchParams(hash.replace(/^#/, "")), next = { ...state, query: null, key: null };
  const whole = (name) => (/^[0-9]{1,7}$/.test(asked.get(name) || "") ? Number(asked.get(name)) : null);
  for (const name of ["prompt", "model", "layer", "head", "n"]) if (whole(name) !== null) next[name] = whole(name);
  for (const name of ["query", "key"]) if (whole(name) !== null) next[name] = whole(name) - base;
  if (next.query !== null && next.key !== null && next.key > next.query) next.key = null;
  if (asked.has("view")) next.view = asked.get("view");
  next.shade = asked.get("shade") === "gate" ? "gate" : "weight";
  next.every = asked.get("layers") === "all";
  return next;
};

const hasEntry = (state) => state.query !== null && state.key !== null;
