// The small text beside the pointer, and frames over canvases.

const placeTip = (app, event, text) => {
  const { tip, root } = app.parts, box = root.getBoundingClientRect();
  tip.textContent = text;
  tip.hidden = false;
  const x = event.clientX - box.left + 14, y = event.clientY - box.top + 14;
  const end = Math.min(window.innerHeight, app.host.keys === root ? box.bottom : Infinity); // a widget scrolls
  const above = event.clientY + 14 + tip.offsetHeight > end ? tip.offsetHeight + 28 : 0;
  tip.style.left = root.scrollLeft + Math.max(4, Math.min(x, root.clientWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = root.scrollTop + y - above + "px";
};
const hideTip = (app) => { app.parts.tip.hidden = true; };

const newFrame = (kind) => make("div", { class: "asp-frame " + kind, hidden: true });
const placeFrame = (frame, left, top, width, height) => {
  frame.hidden = false;
  frame.style.left = left + "px";
  frame.style.top = top + "px";
  frame.style.width = width + "px";
  frame.style.height = height + "px";
};

const tokenAt = (app, position) => app.data.prompts[app.state.prompt].tokens[position];
const tokenText = (app, position) => {
  const token = tokenAt(app, position), place = String(position + app.data.base);
  return token ? shortText(token, 24) + " (" + place + ")" : place;
};
const tokenNode = (app, position, most = 24) => {
  const token = tokenAt(app, position), place = make("span", { class: "asp-place" }, String(position + app.data.base));
  const word = token ? make("span", { class: "asp-word" }, shortText(token, most)) : null;
  return make("span", { class: "asp-spot" }, word, " ", place);
};

// One line on an entry.
const entryText = (app, model, head, query, key) => {
  const entries = model.entries(app.state.prompt), i = entries.find(head, query, key);
  const weight = entries.weightOf(i), gate = entries.gate(i);
  const parts = [model.nameOf(head) + ": " + tokenText(app, key) + " \u2192 " + tokenText(app, query)];
  parts.push(model.value + " " + (model.gated && !weight ? "0 (closed)" : number(weight)));
  if (gate !== null) parts.push("expected gate " + percent(gate));
  return parts.join(", ");
};
