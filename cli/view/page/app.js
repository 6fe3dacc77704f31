// The page: what is pressed and typed, and who is told of it.

import { get, post } from "./api.js";
import { Annotation } from "./annotate.js";
import { button, byId, complain, fill, make, say } from "./dom.js";
import { Panel } from "./panel.js";
import { Picker } from "./picker.js";
import { Runs } from "./runs.js";
import { save } from "./save.js";
import { Source } from "./source.js";
import { View } from "./view.js";

const FIRST_POINTS = 5; // of a pair whose keypoints are known
const NO_MAPS = "The store has no maps yet: make some with `dualsd cache maps`, and load this page again.";
const NO_IMAGES = "The store has no images yet: fill it with `dualsd cache build`, and load this page again.";
const SPOKEN_AFTER = 400; // milliseconds without a change

class Page {
  #spoken = 0;

  constructor(view) {
    this.view = view;
    this.panels = [new Panel(view, 0)];
    this.source = new Source(view, () => this.panels[0].found);
    this.picker = new Picker(view);
    this.runs = new Runs(view, (pair) => this.#showListed(pair));
    this.annotation = new Annotation(view, this.picker);
    byId("stage").append(this.source.root, this.panels[0].root);
    this.panels[0].addEventListener("found", () => this.#found());
    for (const [what, react] of [
      ["pair", () => this.#pairChanged()],
      ["points", () => this.#pointsChanged()],
      ["chosen", () => this.#chosenChanged()],
      ["settings", () => this.#settingsChanged()],
    ]) {
      view.addEventListener(what, react);
    }
    this.#bar();
    this.#modes();
    this.#drops();
    document.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("hashchange", () => view.read(location.hash));
  }

  /** The first view: the address's, or a pair of the first category. */
  async start() {
    const { state } = this.view;
    const facts = [state.dataset, state.model, `${state.images.length} images`, `${state.image_size} px`];
    byId("store").textContent = [state.store, ...facts.filter(Boolean)].join(" · ");
    byId("store").title = state.store;
    this.#settingsChanged();
    if (this.view.read(location.hash)) {
      if (this.view.points.length === 0) await this.showPair(this.view.source, this.view.target, []);
      return;
    }
    if (state.defaults === null) say(NO_MAPS, true);
    const [source, target] = firstPair(state.images);
    if (source === undefined) say(NO_IMAGES, true);
    else await this.showPair(source.row, target.row, []);
  }

  /** Look at a pair. points: in A; none for the first of its keypoints, or else the middle; those that nobody moved
   *  since are not kept. */
  async showPair(source, target, points = null) {
    const isUsual = JSON.stringify(this.view.points) === this.usual;
    this.view.showPair(source, target, isUsual ? (points ?? []) : points);
    await this.known;
    if (this.view.source !== source || this.view.target !== target || this.view.points.length > 0) return;
    const { width, height } = this.view.sourceImage;
    const { keypoints } = this.source;
    const middle = { x: width / 2, y: height / 2 };
    this.view.setPoints(keypoints.length > 0 ? keypoints.slice(0, FIRST_POINTS) : [middle]);
    this.usual = JSON.stringify(this.view.points);
  }

  #pairChanged() {
    say("");
    this.#picks();
    this.source.showPair();
    this.panels.forEach((panel) => panel.showPair());
    this.runs.showPair();
    this.known = this.#findKeypoints();
  }

  async #findKeypoints() {
    const { source, target } = this.view;
    if (![source, target].every(Number.isInteger)) return; // of pictures handed over nobody knows any
    try {
      const found = await get("keypoints", { source, target });
      if (source !== this.view.source || target !== this.view.target) return;
      this.source.keypoints = found.map((one) => ({ name: one.name, x: one.source[0], y: one.source[1] }));
      const right = found.map((one) => ({ name: one.name, x: one.target[0], y: one.target[1] }));
      this.panels.forEach((panel) => (panel.keypoints = right));
      this.#render();
    } catch (error) {
      complain(error);
    }
  }

  #pointsChanged() {
    this.source.render();
    this.panels.forEach((panel) => panel.askChosen());
  }

  #chosenChanged() {
    this.source.render();
    this.panels.forEach((panel) => panel.showChosen());
    this.#speak();
  }

  #settingsChanged() {
    const two = this.view.settings.length > 1;
    if (two && this.panels.length === 1) {
      const second = new Panel(this.view, 1);
      this.panels.push(second);
      byId("stage").append(second.root);
      second.keypoints = this.panels[0].keypoints;
      if (this.view.targetImage) second.picture.show(this.view.targetImage);
    } else if (!two && this.panels.length > 1) {
      this.panels.pop().root.remove();
    }
    byId("stage").classList.toggle("two", two);
    this.panels[0].title.textContent = two ? "B, setting 1" : "B";
    byId("compare").setAttribute("aria-pressed", String(two));
    byId("heat").setAttribute("aria-pressed", String(this.view.showsHeat));
    this.panels.forEach((panel) => panel.showSetting());
  }

  #found() {
    this.source.render();
    this.#speak();
  }

  #render() {
    this.source.render();
    this.panels.forEach((panel) => panel.render());
  }

  #speak() {
    clearTimeout(this.#spoken);
    this.#spoken = setTimeout(() => (byId("spoken").textContent = this.panels[0].sentence()), SPOKEN_AFTER);
  }

  #picks() {
    const { sourceImage, targetImage } = this.view;
    const pick = (letter, image, use) => {
      const step = (by, sign, words) => {
        const onclick = () => use(this.#neighbour(image, by));
        return button(sign, onclick, { class: "plain step", "aria-label": `${words} image for ${letter}` });
      };
      const open = () => this.picker.open(`Image ${letter}`, image, use);
      const name = make("button", { type: "button", class: "name", title: image.id, onclick: open }, image.id);
      name.setAttribute("aria-label", `${letter}: ${image.id}. Choose another image`);
      fill(
        byId(`pick-${letter.toLowerCase()}`),
        make("strong", {}, letter),
        step(-1, "‹", "Previous"),
        name,
        step(1, "›", "Next"),
      );
    };
    pick("A", sourceImage, (row) => this.#showSource(row));
    pick("B", targetImage, (row) => this.#showTarget(row));
  }

  /** Look at a pair of a run, at all its keypoints. */
  async #showListed({ source, target }) {
    this.view.showPair(source, target, []);
    const stage = byId("stage");
    const isBelow = stage.getBoundingClientRect().top > innerHeight / 2; // on a telephone
    if (isBelow) stage.scrollIntoView({ behavior: "smooth" });
    await this.known;
    if (this.view.source === source && this.view.target === target) this.source.takeKeypoints();
  }

  /** Look at another A; where B is of another category, at the image after A in its own as well. */
  #showSource(row) {
    const image = this.view.byRow.get(row);
    const isAlike = image.category === this.view.targetImage.category || !Number.isInteger(row);
    return this.showPair(row, isAlike ? this.view.target : this.#neighbour(image, 1), []);
  }

  #showTarget(row) {
    return this.showPair(this.view.source, row);
  }

  /** The row of the image so many places on among those of its category that have maps. */
  #neighbour(image, by) {
    const fits = (one) => one === image || (one.category === image.category && one.maps !== 0);
    const own = this.view.state.images.filter(fits);
    return own[(own.findIndex((one) => one.row === image.row) + by + own.length) % own.length].row;
  }

  #bar() {
    byId("swap").addEventListener("click", () => this.swap());
    byId("heat").addEventListener("click", () => this.toggleHeat());
    byId("compare").addEventListener("click", () => this.view.compare(this.view.settings.length === 1));
    for (const form of ["png", "svg"]) {
      byId(`save-${form}`).addEventListener(
        "click",
        () => save(this.view, this.source, this.panels, form).catch(complain),
      );
    }
    byId("command").addEventListener("click", () => this.#command().catch(complain));
    byId("keys").addEventListener("click", () => byId("keys-dialog").showModal());
  }

  /** A and B change places; points become their matches. */
  swap() {
    const { source, target } = this.view;
    const matches = this.panels[0].found.map((one) => one.match);
    this.showPair(target, source, matches);
  }

  toggleHeat() {
    this.view.showsHeat = !this.view.showsHeat;
    this.view.tell("settings");
    this.panels.forEach((panel) => (this.view.showsHeat ? panel.showChosen() : panel.render()));
  }

  async #command() {
    const { source, target, points, settings } = this.view;
    const { command } = await post(
      "command",
      { source, target, points: points.map(({ x, y }) => [x, y]), setting: settings[0] },
    );
    byId("command-line").textContent = command;
    const copied = await navigator.clipboard.writeText(command).then(() => true, () => false);
    byId("command-copied").textContent = copied ? "It is in the clipboard." : "Select it and copy it.";
    byId("command-dialog").showModal();
  }

  #modes() {
    const { state } = this.view;
    byId("mode-runs").hidden = state.runs.length === 0;
    byId("mode-annotate").hidden = !state.annotate;
    const show = (mode) => {
      for (const own of ["match", "runs", "annotate"]) {
        byId(`mode-${own}`).setAttribute("aria-pressed", String(own === mode));
      }
      document.body.classList.toggle("with-runs", mode === "runs");
      byId("runs").hidden = mode !== "runs";
      byId("stage").hidden = byId("actions").hidden = mode === "annotate";
      document.querySelector(".bar").hidden = mode === "annotate";
      byId("annotate").hidden = mode !== "annotate";
      if (mode === "runs") this.runs.open();
      if (mode === "annotate") this.annotation.open(this.view.source);
      else if (this.mode === "annotate") this.showPair(this.view.source, this.view.target); // with what was marked
      this.mode = mode;
    };
    for (const mode of ["match", "runs", "annotate"]) byId(`mode-${mode}`).addEventListener(
      "click",
      () => show(mode),
    );
    this.mode = "match";
  }

  /** Files that are dropped on A or on a panel. */
  #drops() {
    if (!this.view.state.can_upload) return;
    const stage = byId("stage");
    const side = (event) => event.target.closest(".source, .panel");
    const mark = (own) => {
      for (const one of stage.querySelectorAll(".source, .panel")) one.classList.toggle("dropping", one === own);
    };
    addEventListener("dragover", (event) => {
      event.preventDefault();
      mark(side(event));
    });
    addEventListener("dragleave", () => mark(null));
    addEventListener("drop", async (event) => {
      event.preventDefault();
      mark(null);
      const files = [...event.dataTransfer.files].slice(0, 2);
      const isSource = side(event)?.classList.contains("source") ?? false;
      const rows = [];
      for (const file of files) rows.push(await this.picker.hand(file));
      if (rows.length === 0 || rows.includes(null)) return;
      if (rows.length === 2) this.showPair(rows[0], rows[1], []);
      else if (isSource) this.#showSource(rows[0]);
      else this.#showTarget(rows[0]);
    });
  }

  #key(event) {
    const isTyping = event.target.closest("input, select, textarea, dialog[open]") !== null;
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "?") return byId("keys-dialog").showModal();
    const done = this.mode === "annotate" ? this.annotation.key(event) : this.#matchKey(event);
    if (done) event.preventDefault();
  }

  /** Whether a key meant something. */
  #matchKey(event) {
    const { view } = this;
    const { width, height } = view.sourceImage ?? {};
    const keys = {
      n: () => view.addPoint(width / 2, height / 2),
      k: () => this.source.takeKeypoints(),
      x: () => this.swap(),
      h: () => this.toggleHeat(),
      c: () => view.compare(view.settings.length === 1),
      a: () => this.#showSource(this.#neighbour(view.sourceImage, event.shiftKey ? -1 : 1)),
      b: () => this.#showTarget(this.#neighbour(view.targetImage, event.shiftKey ? -1 : 1)),
      Delete: () => view.removePoint(),
      Backspace: () => view.removePoint(),
    };
    if (width === undefined) return false;
    if (event.key.startsWith("Arrow") && event.target.closest(".pairs, .cells, .scroll")) return false;
    if (this.source.step(event)) return true;
    if (/^[1-9]$/.test(event.key)) {
      view.choose(Number(event.key) - 1);
      this.source.focus();
      return true;
    }
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    act?.();
    return act !== undefined;
  }
}

/** The first two images of a category, of those that most maps are kept of. */
function firstPair(images) {
  const most = Math.max(...images.map((image) => image.maps));
  const own = images.filter((image) => image.maps === most);
  const first = own.find((image, place) => own[place + 1]?.category === image.category) ?? own[0];
  return [first, own.find((image) => image.category === first?.category && image !== first) ?? first];
}

/** The button that turns from the system's colours to light to dark. */
function theme() {
  const signs = { auto: "◐", light: "☀", dark: "☾" };
  const turn = byId("theme");
  const set = (name) => {
    document.documentElement.dataset.theme = name;
    turn.textContent = signs[name];
    turn.setAttribute("aria-label", `Colours: ${name}`);
    turn.title = `Colours: ${name}`;
    localStorage.setItem("dualsd-theme", name);
  };
  const order = Object.keys(signs);
  set(order.find((name) => name === localStorage.getItem("dualsd-theme")) ?? "auto");
  turn.addEventListener("click", () => set(order[(order.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
}

theme();
try {
  const page = new Page(new View(await get("state")));
  await page.start();
} catch (error) {
  complain(error);
}
