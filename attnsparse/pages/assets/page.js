// The page by itself: the state is in the address, unless the page is inside another one.

const host = {
  alone: location.protocol !== "about:" && window.parent === window,
  keys: document,
  tall: () => window.innerHeight,
  read() { return location.hash; },
  write(text, push) {
    if (!this.alone || text === location.hash) return;
    if (push) history.pushState(null, "", text);
    else history.replaceState(null, "", text);
  },
  chosen() {},
};
const app = new App(document.getElementById("attention"), JSON.parse(document.getElementById("data").textContent),
  host);
window.addEventListener("popstate", () => app.follow());
