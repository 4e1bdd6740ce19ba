// The parts put together. A host says where the state is kept: the address of a page, or a notebook's widget.
//
// host: read() gives a state's text or "", write(text, push) keeps it, keys is what hears the keyboard, tall() is how
// many pixels are in view, chosen(state) is told what is looked at, and ask(question, answer), if it is there, has
// exact effects computed.

class App {
  constructor(root, data, host) {
    Object.assign(this, { root, data, host, models: modelsOf(data), asked: new Map() });
    this.parts = { root, view: make("section", { class: "asp-view", "aria-label": "view" }),
      card: make("aside", { class: "asp-card", "aria-live": "polite" }), bar: make("nav", { class: "asp-bar" }),
      crumbs: make("p", { class: "asp-crumbs" }), help: make("div", { class: "asp-over" }),
        tip: make("div", { class: "asp-tip", hidden: true }) };
    root.classList.add("asp");
    root.replaceChildren(this.header(), this.parts.bar, this.parts.crumbs,
      make("main", { class: "asp-main" }, this.parts.view, this.parts.card), this.parts.help, this.parts.tip);
    this.start = firstState(this.models);
    this.state = settled(stateOf(host.read(), this.start, data.base), this.models);
    host.chosen(this.state);
    host.keys.addEventListener("keydown", (event) => onKey(this, event));
    this.watcher = new ResizeObserver(() => this.resized());
    this.watcher.observe(root);
  }

  header() {
    const about = this.models.map((model, i) => make("li", {}, make("strong", {}, model.name), " ",
      make("span", { "data-about": i })));
    const help = button("?", () => this.update({ help: !this.state.help }),
      { class: "asp-ask-help", "aria-label": "help" });
    return make("header", { class: "asp-header" },
      make("div", {}, make("h1", {}, this.data.title), make("ul", { class: "asp-about" }, ...about)), help);
  }

  // Pixels of the widest figure, and how tall views should be.
  get wide() { return this.width >= 980; }
  viewWidth() { return this.width - (this.wide ? 360 + 24 : 0) - 2; }
  figureWidth(least) {
    const n = this.models.length, beside = Math.floor((this.viewWidth() - 24 * (n - 1)) / n);
    return beside >= least ? beside : this.viewWidth();
  }
  room() { return Math.max(260, this.host.tall() - 210); }

  resized() {
    const width = this.root.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.root.classList.toggle("asp-wide", this.wide);
    this.render();
  }

  follow() { this.show(settled(stateOf(this.host.read(), this.state, this.data.base), this.models)); }

  update(changes, push = false) {
    const next = settled({ ...this.state, ...changes }, this.models);
    this.show(next);
    this.host.write(hashOf(next, this.data.base, this.models), push);
  }

  show(next) {
    this.state = next;
    this.host.chosen(next);
    if (this.width) this.render();
  }

  render() {
    const { state, parts } = this, focused = this.focusedPart();
    hideTip(this);
    const views = { heads: headsView, head: headView, sentence: sentenceView, list: listView };
    const scrolled = state.view === this.rendered ? (parts.view.querySelector(".asp-scroll") || {}).scrollTop : 0;
    parts.view.replaceChildren(...views[state.view](this));
    const scroll = parts.view.querySelector(".asp-scroll");
    if (scroll) scroll.scrollTop = scrolled || 0;
    this.rendered = state.view;
    parts.card.replaceChildren(...cardContent(this).filter((part) => part !== null));
    parts.bar.replaceChildren(...[viewTabs(this), promptChoice(this), shadeChoice(this),
      circuitChoice(this)].filter((part) => part !== null));
    parts.crumbs.replaceChildren(...crumbs(this));
    parts.help.style.top = this.root.scrollTop + 60 + "px";
    parts.help.replaceChildren(...(state.help ? [helpBox(this)] : []));
    for (const about of this.root.querySelectorAll("[data-about]")) {
      about.textContent = this.models[Number(about.dataset.about)].about(state.prompt);
    }
    if (focused) focused();
  }

  // The control that has the focus is made anew with the others: what gives it back.
  focusedPart() {
    const active = this.root.getRootNode().activeElement; // of a shadow tree, where the page is in one
    if (!active || !this.root.contains(active) || active === this.root) return null;
    const same = (element) => element.tagName === active.tagName && element.className === active.className &&
      element.getAttribute("aria-label") === active.getAttribute("aria-label") && element.type === active.type &&
      (active.tagName !== "BUTTON" || element.textContent === active.textContent);
    const all = (test) => [...this.root.querySelectorAll(active.tagName)].filter(test), at = all(same).indexOf(active);
    const span = active.type === "search" ? [active.selectionStart, active.selectionEnd] : null;
    return () => {
      const found = all(same)[at];
      (found || this.parts.view.querySelector("canvas") || this.root).focus({ preventScroll: true });
      if (found && span) found.setSelectionRange(...span);
    };
  }

  caption(index, more = "") {
    const model = this.models[index], state = this.state;
    if (this.models.length === 1) return null;
    return make("p", { class: "asp-caption" + (index === state.model ? " asp-on" : "") }, model.name +
      (more ? " " + more : ""));
  }

  modelChoice() {
    return make("span", { class: "asp-tabs", role: "group", "aria-label": "model" },
      ...this.models.map((model, index) =>
      button(model.name, () => this.update({ model: index }),
        { "aria-pressed": String(index === this.state.model), "data-model": index })));
  }

  gatedModel() {
    const { model } = this.state, able = (i) => this.models[i].gated;
    return able(model) ? model : Math.max(0, this.models.findIndex((_, i) => able(i)));
  }

  filter(text) { this.update({ filter: text }); }

  // ------------------------------------------------------------------------------------- exact effects

  placeOf(model, head, query, key) {
    return [this.models.indexOf(model), this.state.prompt, head, query, key].join(",");
  }

  effectOf(model, head, query, key) {
    const effects = model.entries(this.state.prompt).effects, size = model.prompts[this.state.prompt].tokens.length;
    const sent = effects ? effects.get(head, query * size + key) : undefined;
    if (sent !== undefined || !this.asked.size) return sent;
    return (this.asked.get(this.placeOf(model, head, query, key)) || {}).value;
  }

  // What is said in place of an effect that was asked for.
  waiting(model, head, query, key) {
    const known = this.asked.get(this.placeOf(model, head, query, key));
    return known ? known.error || "computing \u2026" : "";
  }

  ask(model, head, query, key) {
    const place = this.placeOf(model, head, query, key);
    const entry = [Math.floor(head / model.nHead), head % model.nHead, query, key];
    this.asked.set(place, {});
    this.host.ask({ model: this.models.indexOf(model), prompt: this.state.prompt, entry }, (answer) => {
      this.asked.set(place, answer);
      this.render();
    });
    this.render();
  }

  end() { this.watcher.disconnect(); }
}
