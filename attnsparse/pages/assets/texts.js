// Elements and texts. Text stays text: nothing in these scripts makes markup of it.

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
};

const SVG = "http://www.w3.org/2000/svg"; // a name, nothing is loaded from there

const makeDrawn = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const button = (text, onclick, attributes = {}) => make("button", { type: "button", onclick, ...attributes }, text);

// Three digits, as tables have them.
const number = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 9999.5 || size < 0.0005) return value.toExponential(1);
  return size >= 999.5 ? value.toFixed(0) : value.toPrecision(3);
};
const percent = (share) => (100 * share).toFixed(share > 0.9995 || share < 0.1 ? 1 : 0) + " %";
const counted = (n, word) => n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s");
const countedEntries = (n) => n.toLocaleString("en") + (n === 1 ? " open entry" : " open entries");
const headName = (layer, head) => "L" + layer + "H" + head;
const shortText = (text, most) => (text.length > most ? text.slice(0, most - 1) + "\u2026" : text);
