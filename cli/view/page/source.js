// A: the image in which points are chosen.

import { button, fill, make } from "./dom.js";
import { dot, numberButton, pin, wayBack } from "./marks.js";
import { Picture } from "./picture.js";
import { MOST_POINTS } from "./view.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LARGE_STEP = 10;

/** By how many pixels a key moves a point, as x and y; null for other keys. */
export function stepOf({ key, shiftKey }) {
  if (!(key in STEPS)) return null;
  const [x, y] = STEPS[key].map((own) => own * (shiftKey ? LARGE_STEP : 1));
  return { x, y };
}

/** What was found of the points is told by `found`, a function: the first panel's list. */
export class Source {
  #grip = null; // of a drag: from the pointer to the point

  constructor(view, found) {
    Object.assign(this, { view, found, keypoints: [] });
    this.picture = new Picture("Points in A: arrow keys move the chosen one");
    this.chips = make("div", { class: "chips", role: "group", "aria-label": "Points" });
    this.root = make(
      "section",
      { class: "source", "aria-label": "Points" },
      make(
        "header",
        { class: "head" },
        make("h2", {}, "A"),
        make("p", { class: "words" }, "Click or drag. Shift adds a point."),
      ),
      make("div", { class: "seen" }, this.picture.root),
      make("div", { class: "under" }, this.chips, legend()),
    );
    const area = this.picture.root;
    area.classList.add("touched");
    area.addEventListener("pointerdown", (event) => this.#press(event));
    area.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, () => (this.#grip = null));
  }

  showPair() {
    this.keypoints = [];
    this.picture.show(this.view.sourceImage);
    this.render();
  }

  #press(event) {
    if (event.button !== 0 || this.picture.image === null) return;
    event.preventDefault();
    const at = this.picture.place(event);
    const { name } = event.target.closest("[data-name]")?.dataset ?? {};
    this.picture.root.setPointerCapture(event.pointerId);
    this.#grip = { x: 0, y: 0 };
    if (name?.startsWith("point ")) {
      this.view.choose(Number(name.slice(6)));
      const point = this.view.points[this.view.chosen];
      this.#grip = { x: point.x - at.x, y: point.y - at.y };
    } else {
      const to = name === undefined ? at : this.keypoints[Number(name.slice(4))];
      if (event.shiftKey || this.isAdding) this.view.addPoint(to.x, to.y);
      else this.view.movePoint(to.x, to.y);
      this.isAdding = false;
      this.render();
    }
    this.focus();
  }

  #drag(event) {
    if (this.#grip === null) return;
    const at = this.picture.place(event);
    this.view.movePoint(at.x + this.#grip.x, at.y + this.#grip.y);
  }

  /** The keyboard goes to the chosen point. */
  focus() {
    this.picture.mark(`point ${this.view.chosen}`)?.focus({ preventScroll: true });
  }

  /** Move the chosen point by an arrow key; whether it was one. */
  step(event) {
    const step = stepOf(event);
    const point = this.view.points[this.view.chosen];
    if (step === null || point === undefined) return false;
    this.view.movePoint(point.x + step.x, point.y + step.y);
    return true;
  }

  /** Put a point on each keypoint that both images show. */
  takeKeypoints() {
    this.view.setPoints(this.keypoints.map(({ x, y, name }) => ({ x, y, name })));
  }

  render() {
    this.picture.drawMarks((unit) => this.#marks(unit));
    this.#chips();
  }

  #marks(unit) {
    const { points, chosen } = this.view;
    const found = this.found();
    const dots = this.keypoints.map(
      (point, index) => dot(point, unit, { "data-name": `dot ${index}`, "aria-hidden": "true" }),
    );
    const back = found[chosen]?.back;
    const order = points.map((_, index) => index).sort((one, other) => (one === chosen) - (other === chosen));
    const pins = order.map((index) => {
      const { x, y } = points[index];
      const label = `Point ${index + 1}, x ${x.toFixed(0)}, y ${y.toFixed(0)}`;
      const said = { role: "button", "aria-label": label, "aria-pressed": String(index === chosen) };
      const filled = found[index]?.mutual ?? true;
      const reach = { tabindex: index === chosen ? 0 : -1, "data-name": `point ${index}` };
      return pin({ x, y, index, filled, chosen: index === chosen }, unit, { ...said, ...reach });
    });
    return [
      ...dots,
      ...(back && points[chosen] ? [wayBack({ ...back, index: chosen }, points[chosen], unit)] : []),
      ...pins,
    ];
  }

  #chips() {
    const { points, chosen } = this.view;
    const chips = points.map((_, index) => numberButton(index, index === chosen, () => this.view.choose(index)));
    const [isFull, isEmpty] = [points.length >= MOST_POINTS, points.length === 0];
    const titles = {
      add: "The next click in A adds a point (N)",
      remove: "Remove the chosen point (Delete)",
      keypoints: "A point on each keypoint that both images show (K)",
    };
    fill(
      this.chips,
      ...chips,
      button("Add", () => this.add(), { title: titles.add, disabled: isFull }),
      button("Remove", () => this.view.removePoint(), { title: titles.remove, disabled: isEmpty }),
      this.keypoints.length > 0 && button("Keypoints", () => this.takeKeypoints(), { title: titles.keypoints }),
    );
    this.chips.querySelector(".plain").setAttribute("aria-pressed", String(this.isAdding === true));
  }

  /** The next click adds a point. */
  add() {
    this.isAdding = !this.isAdding;
    this.#chips();
  }
}

function legend() {
  const example = (filled, words) => {
    const sign = make("i", { class: filled ? "sign filled" : "sign hollow", "aria-hidden": "true" });
    return make("span", {}, sign, words);
  };
  const back = make("span", {}, make("i", { class: "sign diamond", "aria-hidden": "true" }), "end of the way back");
  const right = make("span", {}, make("i", { class: "sign cross", "aria-hidden": "true" }), "truth, with α's circle");
  return make("p", { class: "legend" }, example(true, "mutual"), example(false, "not mutual"), back, right);
}
