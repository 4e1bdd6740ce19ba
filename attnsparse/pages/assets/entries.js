// Arrays of the page, and entries of patterns: by their place, or those of one head after the other.

const bytesOf = (text) => {
  const signs = atob(text), bytes = new Uint8Array(signs.length);
  for (let i = 0; i < signs.length; i++) bytes[i] = signs.charCodeAt(i);
  return bytes;
};
const arrayOf = (Kind, text) => (text === null ? null : new Kind(bytesOf(text).buffer));

// Where a cell is among those of a head, which are in order; -1 if it is not.
const findCell = (start, cells, head, cell) => {
  let low = start[head], high = start[head + 1] - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (cells[middle] === cell) return middle;
    if (cells[middle] < cell) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
};

const triangle = (n) => (n * (n + 1)) / 2;

class Effects {
  constructor(sent) {
    this.start = arrayOf(Uint32Array, sent.start);
    this.cell = arrayOf(Uint32Array, sent.cell);
    this.value = arrayOf(Float32Array, sent.value);
  }

  get(head, cell) {
    const i = findCell(this.start, this.cell, head, cell);
    return i < 0 ? undefined : this.value[i];
  }
}

// One prompt of one model. Heads are numbers layer * n_head + head.
class Entries {
  constructor(sent, size, gateBias) {
    this.size = size;
    this.open = sent.n_open;
    this.leftOut = sent.n_left_out;
    this.weights = arrayOf(Uint16Array, sent.weight);
    this.start = sent.form === "open" ? arrayOf(Uint32Array, sent.start) : null;
    this.cell = sent.form === "open" ? arrayOf(Uint32Array, sent.cell) : null;
    this.scores = arrayOf(Int16Array, sent.score);
    this.scale = sent.score_scale;
    this.gateBias = gateBias;
    this.norm = arrayOf(Float32Array, sent.norm);
    this.effects = sent.effects === null ? null : new Effects(sent.effects);
  }

  // The number of an entry among those that were sent, -1 for one that was not.
  find(head, query, key) {
    if (key > query) return -1;
    if (this.start === null) return head * triangle(this.size) + triangle(query) + key;
    return findCell(this.start, this.cell, head, query * this.size + key);
  }

  weightOf(i) { return i < 0 ? 0 : this.weights[i] / 65535; }
  weight(head, query, key) { return this.weightOf(this.find(head, query, key)); }
  score(i) { return i < 0 || this.scores === null ? null : this.scores[i] * this.scale; }

  // The probability that the gate of an entry is open in training.
  gate(i) {
    const score = this.score(i);
    return score === null ? null : 1 / (1 + Math.exp(-(score + this.gateBias)));
  }

  contribution(head, key, weight) {
    return this.norm === null ? null : weight * this.norm[head * this.size + key];
  }

  // Calls see(query, key, weight, i) for every entry of a head that was sent, closed ones too.
  eachSent(head, see) {
    if (this.start === null) {
      let i = head * triangle(this.size);
      for (let q = 0; q < this.size; q++) for (let k = 0; k <= q; k++, i++) see(q, k, this.weights[i] / 65535, i);
      return;
    }
    for (let i = this.start[head]; i < this.start[head + 1]; i++) {
      const cell = this.cell[i], q = Math.floor(cell / this.size);
      see(q, cell - q * this.size, this.weights[i] / 65535, i);
    }
  }

  eachOpen(head, see) {
    this.eachSent(head, (q, k, weight, i) => { if (weight > 0) see(q, k, weight, i); });
  }

  countOpen(head) {
    if (this.start !== null) return this.start[head + 1] - this.start[head];
    const all = triangle(this.size);
    let n = 0;
    for (let i = head * all; i < (head + 1) * all; i++) n += this.weights[i] > 0;
    return n;
  }

  strongest(head) {
    let best = null;
    this.eachOpen(head, (query, key, weight) => { if (!best || weight > best.weight) best = { query, key, weight }; });
    return best;
  }
}

// The best items of a circuit: ranks count from 0.
class Circuit {
  constructor(sent, nHead, size) {
    Object.assign(this, { unit: sent.unit, width: sent.width, about: sent.about, nAll: sent.n_all, first: sent.first });
    this.sizes = sent.sizes;
    this.effect = sent.effect;
    this.items = arrayOf(Int32Array, sent.items);
    this.scores = arrayOf(Float32Array, sent.scores);
    this.length = this.items.length / this.width;
    this.ofHeads = new Map(); // head -> ranks, ascending
    this.ofCells = new Map(); // head and cell -> rank
    for (let rank = 0; rank < this.length; rank++) {
      const [layer, number, query, key] = this.items.subarray(rank * this.width, (rank + 1) * this.width);
      const head = layer * nHead + number;
      if (!this.ofHeads.has(head)) this.ofHeads.set(head, []);
      this.ofHeads.get(head).push(rank);
      if (this.width === 4) this.ofCells.set(head + ":" + (query * size + key), rank);
    }
  }

  // Rank of an entry, undefined for one that is not in the page; a circuit of heads has all entries of a head.
  rank(head, cell) {
    return this.width === 4 ? this.ofCells.get(head + ":" + cell) : (this.ofHeads.get(head) || [])[0];
  }
  has(head, cell, n) { const rank = this.rank(head, cell); return rank !== undefined && rank < n; }
  countOf(head, n) { return (this.ofHeads.get(head) || []).filter((rank) => rank < n).length; }

  // [n, faithfulness] of the largest size up to n that was evaluated, null if there is none.
  explained(n) {
    let found = null;
    this.sizes.forEach((size, i) => { if (size <= n && this.effect[i] !== null) found = [size, this.effect[i]]; });
    return found;
  }
}

// The n largest of what each(add) adds as add(value, thing), largest first.
const largest = (n, each) => {
  let kept = [], bar = -Infinity;
  const cut = () => {
    kept.sort((a, b) => b.value - a.value);
    kept.length = Math.min(kept.length, n);
    if (kept.length === n && n > 0) bar = kept[n - 1].value;
  };
  each((value, thing) => {
    if (!(value > bar)) return;
    kept.push({ value, thing });
    if (kept.length >= 2 * n + 64) cut();
  });
  cut();
  return kept.map((item) => item.thing);
};
