// What was sent, ready to be asked: models with their prompts, read when first looked at.

class Model {
  constructor(sent, prompts, index) {
    Object.assign(this, { name: sent.name || "model " + (index + 1), nLayer: sent.n_layer, nHead: sent.n_head,
      gated: sent.gated });
    this.value = sent.value;
    this.sent = sent;
    this.prompts = prompts;
    this.read = [];
    this.circuit = sent.circuit === null ? null
      : new Circuit(sent.circuit, sent.n_head, prompts[0].tokens.length);
    this.floor = sent.gated || sent.value !== "weight" ? 0.14 : 0; // so that any open entry is seen
  }

  entries(prompt) {
    this.read[prompt] = this.read[prompt] ||
      new Entries(this.sent.prompts[prompt], this.prompts[prompt].tokens.length, this.sent.gate_bias);
    return this.read[prompt];
  }

  get nHeads() { return this.nLayer * this.nHead; }
  nameOf(head) { return headName(Math.floor(head / this.nHead), head % this.nHead); }

  about(prompt) {
    const entries = this.entries(prompt), all = this.nHeads * triangle(entries.size);
    const heads = this.nLayer + " \u00d7 " + this.nHead + " heads";
    if (this.value !== "weight") return heads;
    const open = this.gated ? entries.open.toLocaleString("en") + " of " + all.toLocaleString("en") + " entries open"
      : "dense, " + all.toLocaleString("en") + " entries";
    const left = entries.leftOut ? ", " + entries.leftOut.toLocaleString("en") + " small ones left out" : "";
    return heads + ", " + open + left;
  }
}

const modelsOf = (data) => data.models.map((sent, index) => new Model(sent, data.prompts, index));
