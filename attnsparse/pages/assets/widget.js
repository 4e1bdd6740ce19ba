// The page in a cell of a notebook: Python computes exact effects, and is told what is chosen.

const hostOf = (model, root, data) => {
  const waiting = new Map();
  model.on("msg:custom", (said) => {
    const place = JSON.stringify(said.asked), answer = waiting.get(place);
    waiting.delete(place);
    if (answer) answer(said);
  });
  const tell = ({ prompt, model: number, layer, head, query, key }) => {
    model.set("chosen", { prompt, model: number, layer, head, query, key });
    model.save_changes();
  };
  const ask = (question, answer) => {
    waiting.set(JSON.stringify(question), answer);
    model.send(question);
  };
  return { keys: root, read: () => "", write: () => {}, chosen: tell, ...(data.live ? { ask } : {}) };
};

export default {
  render({ model, el }) {
    const data = JSON.parse(model.get("data")), root = make("div", { tabindex: "-1", class: "asp-widget" });
    root.style.maxHeight = model.get("height") + "px";
    el.append(root);
    const app = new App(root, data, hostOf(model, root, data));
    return () => app.end();
  },
};
