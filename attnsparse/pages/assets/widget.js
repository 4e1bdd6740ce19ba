// The page in a cell of a notebook: Python computes exact effects, and is told what is chosen.

// Python answers "here" while it runs; a notebook that was opened again, or exported, has no one to ask.
const hostOf = (model, root, here) => {
  const waiting = new Map();
  const hear = (said) => {
    if (said.here) { here(); return; }
    const place = JSON.stringify(said.asked), answer = waiting.get(place);
    waiting.delete(place);
    if (answer) answer(said);
  };
  model.on("msg:custom", hear);
  const tell = ({ prompt, model: number, layer, head, query, key }) => {
    model.set("chosen", { prompt, model: number, layer, head, query, key });
    model.save_changes();
  };
  const ask = (question, answer) => {
    waiting.set(JSON.stringify(question), answer);
    model.send(question);
  };
  const host = { keys: root, read: () => "", write: () => {}, chosen: tell, tall: () => model.get("height") };
  return { host, ask, end: () => model.off("msg:custom", hear) };
};

// Plain keys that nothing here used are not the notebook's either: there, x cuts the cell. Shift + Enter runs it.
const keepKey = (event) => {
  const runs = event.shiftKey && event.key === "Enter";
  if (!runs && !event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
};

export default {
  render({ model, el }) {
    const data = JSON.parse(model.get("data")), root = make("div", { tabindex: "-1", class: "asp-widget" });
    root.style.maxHeight = model.get("height") + "px";
    root.style.setProperty("--asp-tall", model.get("height") + "px");
    el.append(root);
    const { host, ask, end } = hostOf(model, root, () => { host.ask = ask; app.render(); });
    const app = new App(root, data, host);
    root.addEventListener("keydown", keepKey);
    if (data.live) model.send("here?");
    return () => { app.end(); end(); };
  },
};
