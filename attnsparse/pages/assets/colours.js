// Colours: white to dark blue for weights, teal for gates, orange for what belongs to a circuit.

const FONT = '"DejaVu Sans", "Segoe UI", Helvetica, Arial, sans-serif';
const SCALES = {
  weight: [[255, 255, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]],
  gate: [[255, 255, 255], [204, 236, 230], [102, 194, 164], [35, 139, 105], [0, 68, 47]],
  circuit: [[255, 237, 214], [253, 190, 133], [245, 133, 45], [213, 94, 0], [140, 45, 4]],
  faded: [[255, 255, 255], [238, 242, 246], [222, 229, 236], [205, 214, 224], [188, 198, 210]],
};
const AFTER = 0xfff6f4f3; // keys after the query: a light grey, as bytes A, B, G, R
const LINE_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a3b9e", "#666666",
  "#8c510a", "#01665e", "#c51b7d", "#4d4d9f"];
const lineColour = (i) => LINE_COLOURS[i % LINE_COLOURS.length];

const mixed = (colours, share) => {
  const at = Math.max(0, Math.min(1, share)) * (colours.length - 1), low = Math.min(Math.floor(at), colours.length - 2);
  return colours[low].map((c, i) => Math.round(c + (at - low) * (colours[low + 1][i] - c)));
};
const TABLES = Object.fromEntries(Object.entries(SCALES).map(([name, colours]) => [name,
  Uint32Array.from({ length: 256 }, (_, i) => {
    const [red, green, blue] = mixed(colours, i / 255);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  })]));
const cssColour = (name, share) => "rgb(" + mixed(SCALES[name], share).join(",") + ")";

// A canvas of a size in pixels of the page, sharp on any screen, and its context.
const sharpCanvas = (width, height, attributes) => {
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  const canvas = make("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio),
    ...attributes });
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { canvas, context, ratio };
};

// The map of a head as an image of side x side points. Where several entries share one, the largest counts.
const paintHead = (context, entries, head, left, top, side, look) => {
  const cells = Math.min(entries.size, side), values = new Float32Array(cells * cells);
  const tables = new Uint8Array(cells * cells), names = [TABLES.faded, TABLES[look.shade], TABLES.circuit];
  const put = (q, k, value, table) => {
    const at = Math.floor((q * cells) / entries.size) * cells + Math.floor((k * cells) / entries.size);
    if (table > tables[at] || (table === tables[at] && value > values[at])) { values[at] = value; tables[at] = table; }
  };
  const floor = look.floor;
  if (look.shade === "gate") entries.eachSent(head, (q, k, w, i) => put(q, k, entries.gate(i), 1));
  else {
    entries.eachOpen(head, (q, k, w) => put(q, k, floor + (1 - floor) * w,
      !look.circuit ? 1 : look.circuit.has(head, q * entries.size + k, look.n) ? 2 : 0));
  }
  const image = context.createImageData(side, side), points = new Uint32Array(image.data.buffer);
  for (let y = 0; y < side; y++) {
    const row = Math.floor((y * cells) / side);
    for (let x = 0; x < side; x++) {
      const column = Math.floor((x * cells) / side), at = row * cells + column;
      points[y * side + x] = column > row ? AFTER : names[tables[at]][Math.round(255 * values[at])];
    }
  }
  context.putImageData(image, left, top);
};
