// Entries of one model as a table, the first ones by a column.

const MAX_ROWS = 200;

const columnsOf = (app, model, brief = false) => {
  const entries = model.entries(app.state.prompt), found = [];
  if (model.circuit) found.push(["rank", "rank", "rank in the circuit"]);
  found.push(["weight", model.value, model.value === "weight" ? "entry of the pattern"
    : "share of the largest |score|"]);
  if (entries.norm) found.push(["contribution", brief ? "contrib." : "contribution", "|weight \u00b7 v W_O|"]);
  if (entries.effects || app.asked.size) found.push(["effect", "effect", "exact effect on " + app.data.effect]);
  return found;
};

const valueIn = (app, model, name, row) => {
  if (name === "rank") return row.rank === undefined ? -Infinity : -row.rank;
  if (name === "effect") return row.effect === undefined ? -Infinity : Math.abs(row.effect);
  return row[name];
};

const rowOf = (app, model, head, query, key, weight) => {
  const entries = model.entries(app.state.prompt), cell = query * entries.size + key;
  return { head, query, key, weight, contribution: entries.contribution(head, key, weight),
    rank: model.circuit ? model.circuit.rank(head, cell) : undefined, effect: app.effectOf(model, head, query, key) };
};

const wanted = (app, model, row) => {
  const text = app.state.filter.trim().toLowerCase();
  if (app.state.marked && model.circuit && !(row.rank < app.state.n)) return false;
  return text.split(/\s+/).every((word) => !word ||
    [model.nameOf(row.head), tokenAt(app, row.query), tokenAt(app, row.key),
    row.key + app.data.base + "->" + (row.query + app.data.base)].some((part) => part.toLowerCase().includes(word)));
};

const listedRows = (app, model, by) => {
  let n = 0;
  const rows = largest(MAX_ROWS, (add) => {
    for (let head = 0; head < model.nHeads; head++) {
      model.entries(app.state.prompt).eachOpen(head, (query, key, weight) => {
        const row = rowOf(app, model, head, query, key, weight);
        if (!wanted(app, model, row)) return;
        n += 1;
        add(valueIn(app, model, by, row), row);
      });
    }
  });
  return { rows, n };
};

const isChosen = (app, index, row) => {
  const { state } = app, model = app.models[index];
  return state.model === index && row.head === state.layer * model.nHead + state.head &&
    row.query === state.query && row.key === state.key;
};

const chooseRow = (app, index, row, view) => {
  const model = app.models[index];
  app.update({ view, model: index, layer: Math.floor(row.head / model.nHead), head: row.head % model.nHead,
    query: row.query, key: row.key }, true);
};

const cellText = (name, row) =>
  (name === "rank" ? (row.rank === undefined ? "" : String(row.rank + 1)) : number(row[name]));

const entryTable = (app, index, rows, columns, by, onSort) => {
  const model = app.models[index], most = onSort ? 24 : 10;
  const head = make("tr", {}, ...["head", "key", "query"].map((name) => make("th", { scope: "col" }, name)),
    ...columns.map(([name, title, about]) =>
      make("th", { scope: "col", class: "asp-number", title: about, "aria-sort": name === by ? "descending" : "none" },
      onSort ? button(title + (name === by ? " \u25be" : ""), () => onSort(name), { class: "asp-sort" }) : title)));
  const body = rows.map((row) => make("tr", { class: isChosen(app, index, row) ? "asp-on" : "" },
    make("td", {}, button(model.nameOf(row.head),
      () => chooseRow(app, index, row, app.state.view === "list" ? "list" : "head"), { class: "asp-link" })),
    make("td", {}, tokenNode(app, row.key, most)), make("td", {}, tokenNode(app, row.query, most)),
    ...columns.map(([name]) => make("td", { class: "asp-number" }, cellText(name, row)))));
  return make("table", { class: "asp-table" }, make("thead", {}, head), make("tbody", {}, ...body));
};

const defaultSort = (app, model) => {
  const names = columnsOf(app, model).map(([name]) => name);
  if (names.includes(app.state.sort)) return app.state.sort;
  return ["rank", "effect", "contribution", "weight"].find((name) => names.includes(name));
};

const listView = (app) => {
  const index = app.state.model, model = app.models[index], by = defaultSort(app, model),
    { rows, n } = listedRows(app, model, by);
  const filter = make("input", { type: "search", value: app.state.filter, placeholder: "L9H6, a token, 5->8",
    class: "asp-filter",
    "aria-label": "show entries with these words", spellcheck: "false",
      oninput: (event) => app.filter(event.target.value) });
  const said = n > rows.length ? "the first " + rows.length + " of " + n.toLocaleString("en") + " open entries"
    : countedEntries(n);
  return [make("div", { class: "asp-tools" }, ...(app.models.length > 1 ? [app.modelChoice()] : []), filter,
    make("span", { class: "asp-note" }, said)),
    make("div", { class: "asp-scroll" },
      entryTable(app, index, rows, columnsOf(app, model), by, (name) => app.update({ sort: name })))];
};
