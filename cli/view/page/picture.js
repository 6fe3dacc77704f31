// An image with a heat map over it and marks on top.

import { imageAddress } from "./api.js";
import { draw, fill, make } from "./dom.js";
import { drawHeat } from "./heat.js";

/** Redraws itself where its size on the screen changes. label: of its marks, for screen readers. */
export class Picture {
  #marks = () => [];
  #heat = null;

  constructor(label) {
    this.image = null;
    this.photo = make("img", { alt: "", draggable: "false" });
    this.canvas = make("canvas", { class: "heat", "aria-hidden": "true" });
    this.overlay = draw("svg", { class: "marks", role: "group", "aria-label": label });
    this.root = make("div", { class: "frame" }, this.photo, this.canvas, this.overlay);
    new ResizeObserver(() => this.redraw()).observe(this.root);
  }

  /** Show another image, without heat and marks. */
  show(image) {
    this.clear();
    if (image.row === this.image?.row) return;
    this.image = image;
    this.photo.src = imageAddress(image.row);
    this.photo.alt = `${image.id}, ${image.width} by ${image.height} pixels`;
    this.root.style.setProperty("--ratio", image.width / image.height);
    this.overlay.setAttribute("viewBox", `-0.5 -0.5 ${image.width} ${image.height}`);
  }

  clear() {
    this.#heat = null;
    this.#marks = () => [];
    this.redraw();
  }

  /** The length of a pixel of the screen in pixels of the image. */
  get unit() {
    return this.image === null ? 1 : this.image.width / Math.max(this.root.clientWidth, 1);
  }

  /** Where a pointer is, in pixels of the image. */
  place(event) {
    const box = this.root.getBoundingClientRect();
    const share = (value, start, length, side) => ((value - start) / length) * side - 0.5;
    return {
      x: share(event.clientX, box.left, box.width, this.image.width),
      y: share(event.clientY, box.top, box.height, this.image.height),
    };
  }

  /** Show marks: a function from `unit` to SVG. A mark that has the focus keeps it. */
  drawMarks(marks) {
    this.#marks = marks;
    const focused = this.overlay.contains(document.activeElement) ? document.activeElement.dataset.name : undefined;
    fill(this.overlay, ...marks(this.unit));
    if (focused !== undefined) this.mark(focused)?.focus({ preventScroll: true });
  }

  /** The mark of a name. */
  mark(name) {
    return this.overlay.querySelector(`[data-name="${CSS.escape(name)}"]`);
  }

  /** Show a map; none where it is null. */
  drawHeat(map) {
    this.#heat = map;
    this.root.classList.toggle("heated", map !== null);
    this.#paint();
  }

  redraw() {
    this.drawMarks(this.#marks);
    this.root.classList.toggle("heated", this.#heat !== null);
    this.#paint();
  }

  #paint() {
    if (this.#heat === null || this.image === null) return;
    const sharp = Math.min(window.devicePixelRatio, 2);
    const [width, height] = [this.root.clientWidth, this.root.clientHeight].map(
      (side) => Math.max(1, Math.round(side * sharp)),
    );
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    drawHeat(this.canvas, this.#heat, this.image);
  }

  /** What a saved picture shows: the image and the heat as addresses, and marks for a width in pixels. */
  contents(width) {
    return {
      image: this.image,
      photo: this.photo,
      heat: this.#heat === null ? null : this.canvas.toDataURL("image/png"),
      marks: this.#marks(this.image.width / width).map((mark) => mark.cloneNode(true)),
    };
  }
}
