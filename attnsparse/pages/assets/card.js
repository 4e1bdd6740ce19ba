// What is known of what is chosen: an entry, or a head, or the models.

const factRow = (name, about, cells) => make("tr", {}, make("th", { scope: "row", title: about }, name),
  ...cells.map((cell) => make("td", { class: "asp-number" }, cell)));

// The exact effect: known, or a button that asks for it where Python is there, or how to have it.
const effectCell = (app, model, head, query, key, weight) => {
  const known = app.effectOf(model, head, query, key);
  if (known !== undefined) return number(known) || "not finite";
  if (!weight) return model.gated ? "0 (closed)" : "";
  const wait = app.waiting(model, head, query, key);
  if (wait) return wait;
  return app.host.ask ? button("compute", () => app.ask(model, head, query, key), { class: "asp-small asp-ask" })
    : "not computed";
};

const entryFacts = (app, query, key) => {
  const { state } = app, known = app.models.filter((model) => state.layer < model.nLayer && state.head < model.nHead);
  const each = known.map((model) => {
    const head = state.layer * model.nHead + state.head, entries = model.entries(state.prompt);
    const i = entries.find(head, query, key), weight = entries.weightOf(i);
    const rank = model.circuit ? model.circuit.rank(head, query * entries.size + key) : undefined;
    return { model, head, entries, i, weight, rank };
  });
  const rows = [factRow(known[0].value, "entry of the pattern, which multiplies v", each.map((e) => number(e.weight)))];
  if (each.some((e) => e.model.gated)) {
    rows.push(factRow("gate", "whether the gate is open in this run",
      each.map((e) => (e.model.gated ? (e.weight ? "open" : "closed") : "none"))));
  }
  if (each.some((e) => e.entries.gate(e.i) !== null)) {
    rows.push(factRow("expected gate", "sigmoid(score + bias)",
      each.map((e) => (e.entries.gate(e.i) === null ? "" : percent(e.entries.gate(e.i))))));
    rows.push(factRow("score", "before the softmax", each.map((e) => number(e.entries.score(e.i)))));
  }
  if (each.some((e) => e.entries.norm)) {
    rows.push(factRow("contribution", "|weight \u00b7 v W_O|: the size of what the head writes through this entry",
      each.map((e) => number(e.entries.contribution(e.head, key, e.weight)))));
  }
  if (app.data.effect) {
    rows.push(factRow("exact effect", "lost when this entry alone is ablated: " + app.data.effect,
      each.map((e) => effectCell(app, e.model, e.head, query, key, e.weight))));
  }
  if (each.some((e) => e.model.circuit)) {
    rows.push(factRow("rank in circuit", "1 is the best item",
      each.map((e) => (e.rank === undefined ? "\u2013" : String(e.rank + 1)))));
  }
  const top = known.length > 1 ? make("thead", {},
    make("tr", {}, make("td"), ...known.map((m) => make("th", { scope: "col" }, m.name)))) : null;
  return make("table", { class: "asp-facts" }, top, make("tbody", {}, ...rows));
};

// The other heads with the same entry: who else carries this key to this query.
const sameEntry = (app, query, key) => {
  const index = app.state.model, model = app.models[index], entries = model.entries(app.state.prompt);
  let n = 0;
  const rows = largest(8, (add) => {
    for (let head = 0; head < model.nHeads; head++) {
      const weight = entries.weight(head, query, key);
      if (!weight) continue;
      n += 1;
      const row = rowOf(app, model, head, query, key, weight);
      add(row.contribution === null ? weight : row.contribution, row);
    }
  });
  const columns = columnsOf(app, model, true).filter(([name]) => name !== "rank");
  const table = entryTable(app, index, rows, columns, null, null);
  for (const line of table.rows) for (const at of [2, 1]) line.deleteCell(at);
  return [make("h4", {}, "This entry in all heads" + (app.models.length > 1 ? " of " + model.name : "")),
    make("p", { class: "asp-note" }, "open in " + n + " of " + model.nHeads +
      (rows.length < n ? ", the first " + rows.length : "")), table];
};

const entryCard = (app) => {
  const { layer, head, query, key } = app.state;
  return [make("h3", {}, headName(layer, head)),
    make("p", { class: "asp-where" }, "key ", tokenNode(app, key), " \u2192 query ", tokenNode(app, query)),
    entryFacts(app, query, key), app.data.effect ? make("p", { class: "asp-note" }, "effect: " + app.data.effect)
      : null,
    ...sameEntry(app, query, key)];
};

const strongestTable = (app, index, heads, n) => {
  const model = app.models[index], entries = model.entries(app.state.prompt);
  const rows = largest(n, (add) => {
    for (const head of heads) {
      entries.eachOpen(head, (query, key, weight) => {
        const row = rowOf(app, model, head, query, key, weight);
        add(row.effect !== undefined ? 1e6 + Math.abs(row.effect) : row.contribution === null ? weight
          : row.contribution, row);
      });
    }
  });
  const columns = columnsOf(app, model, true).filter(([name]) => name !== "rank" && name !== "weight");
  return entryTable(app, index, rows, columns.length ? columns : [["weight", model.value, ""]], null, null);
};

const headCard = (app) => {
  const { state } = app, model = app.models[state.model], head = state.layer * model.nHead + state.head;
  const open = model.entries(state.prompt).countOpen(head);
  return [make("h3", {}, headName(state.layer, state.head) + (app.models.length > 1 ? " of " + model.name : "")),
    make("p", { class: "asp-note" }, model.gated ? countedEntries(open) : "all entries are open (dense)"),
    make("p", { class: "asp-buttons" },
      button("map", () => app.update({ view: "head" }, true), { class: "asp-small" }), " ",
      button("sentence", () => app.update({ view: "sentence", every: false, shown: [state.head] }, true),
        { class: "asp-small" })),
    make("h4", {}, "Strongest entries"), strongestTable(app, state.model, [head], 12)];
};

const modelCard = (app) => {
  const { state } = app, model = app.models[state.model];
  return [make("h3", {}, "Strongest entries" + (app.models.length > 1 ? " of " + model.name : "")),
    make("p", { class: "asp-note" }, "Click a head for its map, an entry for what it does."),
    strongestTable(app, state.model, Array.from({ length: model.nHeads }, (_, i) => i), 12)];
};

const cardContent = (app) => {
  if (hasEntry(app.state)) return entryCard(app);
  if (app.state.view === "list") return [make("p", { class: "asp-note" }, "Choose an entry to see what it does.")];
  return app.state.view === "heads" || app.state.every ? modelCard(app) : headCard(app);
};
