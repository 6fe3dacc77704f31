// Marking keypoints of a folder's photographs: by name, each image beginning with what the one before proposes.

import { get, post } from "./api.js";
import { button, byId, complain, fill, make, say } from "./dom.js";
import { numberButton, pin } from "./marks.js";
import { Picture } from "./picture.js";
import { stepOf } from "./source.js";

const SAVED_AFTER = 400; // milliseconds without another arrow key

export class Annotation {
  #grip = null;
  #saving = Promise.resolve();
  #timer = 0;

  constructor(view, picker) {
    Object.assign(this, { view, picker, marked: {}, names: [], added: {}, proposals: {}, current: null });
    this.picture = new Picture("Keypoints: arrow keys move the chosen one");
    this.example = new Picture("Keypoints of the image that proposes");
    this.title = make("div", { class: "pick" });
    this.exampleTitle = make("p", { class: "words" });
    this.list = make("ol", { class: "names" });
    this.count = make("p", { class: "words" });
    this.newName = make(
      "input",
      { type: "text", placeholder: "left ear", "aria-label": "Name of a new keypoint", maxlength: "100" },
    );
    this.keep = make("button", { type: "button", onclick: () => this.keepAll() }, "Keep proposals");
    this.proposer = this.#reference();
    fill(byId("annotate"), this.#image(), this.proposer, this.#panel());
    const area = this.picture.root;
    area.classList.add("touched");
    area.addEventListener("pointerdown", (event) => this.#press(event));
    area.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, () => this.#release());
  }

  #image() {
    const words = make("p", { class: "words" }, "Click where the chosen keypoint is; drag to correct.");
    return make(
      "section",
      { "aria-label": "Image to mark" },
      make("header", { class: "head" }, this.title, words),
      make("div", { class: "seen" }, this.picture.root),
    );
  }

  #reference() {
    const head = make("header", { class: "head" }, make("h2", {}, "Proposes"), this.exampleTitle);
    return make(
      "section",
      { "aria-label": "Image that proposes" },
      head,
      make("div", { class: "seen" }, this.example.root),
    );
  }

  #panel() {
    const add = (event) => {
      event.preventDefault();
      this.#addName(this.newName.value.trim());
    };
    const next = make("button", { type: "button", onclick: () => this.#go(1) }, "Next image");
    return make(
      "section",
      { class: "controls", "aria-label": "Keypoints" },
      this.count,
      this.list,
      make("form", { class: "chips", onsubmit: add }, this.newName, make("button", { class: "plain" }, "Add a name")),
      make("div", { class: "chips" }, this.keep, next),
    );
  }

  /** Begin with an image, or stay where it was. */
  async open(row) {
    try {
      this.#take(await get("annotations"));
      await this.show(this.row ?? (Number.isInteger(row) ? row : this.view.state.images[0].row));
    } catch (error) {
      complain(error);
    }
  }

  #take({ file, images, names }) {
    Object.assign(this, { file, marked: images, names });
  }

  get image() {
    return this.view.byRow.get(this.row);
  }

  /** Keypoints of an image by name. */
  #of(row) {
    return this.marked[row] ?? {};
  }

  /** Images of this one's category. */
  get #siblings() {
    return this.view.state.images.filter((one) => one.category === this.image.category && Number.isInteger(one.row));
  }

  /** Names that this category's keypoints have, in the order of the file, and new ones. */
  get #known() {
    const used = new Set(this.#siblings.flatMap((one) => Object.keys(this.#of(one.row))));
    return [...new Set([...this.names.filter((name) => used.has(name)), ...(this.added[this.image.category] ?? [])])];
  }

  /** Mark an image. What it lacks is proposed by the last one that was marked, or the one that has most of it. */
  async show(row) {
    const before = this.row;
    this.row = row;
    this.proposals = {};
    this.current = this.#known.find((name) => !(name in this.#of(row))) ?? this.#known[0] ?? null;
    const open = () => this.picker.open(
      "Image to mark",
      this.image,
      (chosen) => Number.isInteger(chosen) && this.show(chosen),
    );
    const step = (by, sign, words) => button(sign, () => this.#go(by), { class: "plain step", "aria-label": words });
    const name = make(
      "button",
      { type: "button", class: "name", title: this.image.id, onclick: open },
      this.image.id,
    );
    fill(this.title, step(-1, "‹", "Previous image"), name, step(1, "›", "Next image"));
    this.picture.show(this.image);
    this.from = this.#proposer(before);
    const proposer = this.view.byRow.get(this.from);
    this.proposer.hidden = proposer === undefined;
    byId("annotate").classList.toggle("alone", proposer === undefined);
    if (proposer !== undefined) {
      this.exampleTitle.textContent = proposer.id;
      this.example.show(proposer);
    }
    this.render();
    await this.#propose();
  }

  #proposer(before) {
    const lacking = this.#known.filter((name) => !(name in this.#of(this.row)));
    const own = (row) => lacking.filter((name) => name in this.#of(row)).length;
    const isMarked = (row) => row !== this.row && Object.keys(this.#of(row)).length > 0;
    const others = this.#siblings.map((one) => one.row).filter(isMarked);
    if (others.includes(before) && own(before) > 0) return before;
    return others.sort((one, other) => own(other) - own(one))[0];
  }

  async #propose() {
    const { row, from } = this;
    const lacking = Object.entries(this.#of(from)).filter(([name]) => !(name in this.#of(row)));
    const [setting] = this.view.settings;
    if (from === undefined || lacking.length === 0 || setting === undefined) return;
    try {
      const points = lacking.map(([, place]) => place);
      const found = await post(
        "match",
        { source: from, target: row, points, setting, heat: false, keypoints: false },
      );
      if (row !== this.row) return;
      lacking.forEach(([name], place) => {
        const [x, y] = found.points[place];
        if (!(name in this.#of(row))) this.proposals[name] = { x, y, mutual: found.mutual[place] };
      });
      this.render();
    } catch (error) {
      complain(error);
    }
  }

  #go(by) {
    const rows = this.#siblings.map((one) => one.row);
    this.show(rows[(rows.indexOf(this.row) + by + rows.length) % rows.length]);
  }

  #addName(name) {
    if (name === "") return;
    const own = (this.added[this.image.category] ??= []);
    if (!this.#known.includes(name)) own.push(name);
    this.newName.value = "";
    this.#choose(name);
  }

  #choose(name) {
    this.current = name;
    this.render();
  }

  /** Where a keypoint is, or is proposed to be. */
  #place(name) {
    const [x, y] = this.#of(this.row)[name] ?? [];
    return x === undefined ? this.proposals[name] : { x, y };
  }

  /** Put the chosen keypoint somewhere within the image, and show it there; `#save` keeps it. */
  #put({ x, y }) {
    const within = (value, side) => Math.round(Math.min(Math.max(value, 0), side - 1) * 100) / 100;
    delete this.proposals[this.current];
    const place = [within(x, this.image.width), within(y, this.image.height)];
    this.marked[this.row] = { ...this.#of(this.row), [this.current]: place };
    this.render();
  }

  /** Save a keypoint as it is shown; without a place where there is none. One after another, in order. */
  #save(row, name) {
    const [x, y] = this.#of(row)[name] ?? [null, null];
    this.#saving = this.#saving.then(async () => {
      try {
        await post("annotations", { image: row, name, x, y });
        say(`Saved to ${this.file}.`);
      } catch (error) {
        complain(error);
        this.#take(await get("annotations"));
        this.render();
      }
    });
    return this.#saving;
  }

  #press(event) {
    if (event.button !== 0 || this.image === undefined) return;
    event.preventDefault();
    const at = this.picture.place(event);
    const { name } = event.target.closest("[data-name]")?.dataset ?? {};
    if (name !== undefined) this.current = name;
    if (this.current === null) return say("Add the name of a keypoint first.");
    this.picture.root.setPointerCapture(event.pointerId);
    const place = name === undefined ? at : this.#place(name);
    this.#grip = { x: place.x - at.x, y: place.y - at.y };
    this.#put(place);
    this.focus();
    return undefined;
  }

  #drag(event) {
    if (this.#grip === null) return;
    const at = this.picture.place(event);
    this.#put({ x: at.x + this.#grip.x, y: at.y + this.#grip.y });
  }

  #release() {
    if (this.#grip === null) return;
    this.#grip = null;
    this.#save(this.row, this.current);
    this.current = this.#known.find((name) => this.#place(name) === undefined) ?? this.current;
    this.render();
  }

  #remove(name) {
    const { [name]: gone, ...rest } = this.#of(this.row);
    delete this.proposals[name];
    this.marked[this.row] = rest;
    if (gone !== undefined) this.#save(this.row, name);
    this.#choose(name);
  }

  /** Make all proposals keypoints. */
  async keepAll() {
    const { row } = this;
    const kept = Object.keys(this.proposals);
    for (const name of kept) {
      this.current = name;
      this.#put(this.proposals[name]);
    }
    await Promise.all(kept.map((name) => this.#save(row, name)));
  }

  focus() {
    if (this.current !== null) this.picture.mark(this.current)?.focus({ preventScroll: true });
  }

  /** Whether a key meant something. */
  key(event) {
    const step = stepOf(event);
    const place = this.current === null ? undefined : this.#place(this.current);
    if (step !== null && place !== undefined) {
      const [row, name] = [this.row, this.current];
      this.#put({ x: place.x + step.x, y: place.y + step.y });
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#save(row, name), SAVED_AFTER);
      return true;
    }
    const keys = {
      Enter: () => this.keepAll(),
      n: () => this.#go(1),
      p: () => this.#go(-1),
      Delete: () => this.current !== null && this.#remove(this.current),
      Backspace: () => this.current !== null && this.#remove(this.current),
    };
    if (/^[1-9]$/.test(event.key) && Number(event.key) <= this.#known.length) {
      this.#choose(this.#known[Number(event.key) - 1]);
      this.focus();
      return true;
    }
    const isPressing = event.key === "Enter" && event.target.closest("button") !== null;
    if (!(event.key in keys) || isPressing) return false;
    keys[event.key]();
    return true;
  }

  render() {
    const known = this.#known;
    this.picture.drawMarks((unit) => known.flatMap((name, index) => this.#pin(name, index, unit)));
    const places = Object.entries(this.#of(this.from)).map(
      ([name, [x, y]]) => ({ name, x, y, index: known.indexOf(name) }),
    );
    const marks = places.map((own) => ({ ...own, filled: true, chosen: own.name === this.current }));
    this.example.drawMarks((unit) => marks.map((own) => pin(own, unit, { "aria-hidden": "true" })));
    fill(this.list, ...known.map((name, index) => this.#named(name, index)));
    const done = this.#siblings.filter((one) => known.every((name) => name in this.#of(one.row))).length;
    const own = Object.keys(this.#of(this.row)).length;
    const all = this.#siblings.length;
    this.count.textContent = `${own} of ${known.length} keypoints here; ${done} of ${all} images have all.`;
    this.keep.disabled = Object.keys(this.proposals).length === 0;
  }

  #pin(name, index, unit) {
    const place = this.#place(name);
    if (place === undefined) return [];
    const isProposed = name in this.proposals;
    const label = `${name}${isProposed ? ", proposed" : ""}, x ${place.x.toFixed(0)}, y ${place.y.toFixed(0)}`;
    const chosen = name === this.current;
    const said = {
      role: "button",
      "aria-label": label,
      "aria-pressed": String(chosen),
      tabindex: chosen ? 0 : -1,
      "data-name": name,
    };
    return [pin({ ...place, index, filled: !isProposed, chosen }, unit, said)];
  }

  #named(name, index) {
    const place = this.#place(name);
    const isProposed = name in this.proposals;
    const isMissing = place === undefined;
    const trust = place?.mutual ? "proposed" : "unsure";
    const where = isMissing ? "to be marked" : isProposed ? trust : `${place.x.toFixed(0)}, ${place.y.toFixed(0)}`;
    const chosen = name === this.current;
    const choose = () => this.#choose(name);
    const which = button(name, choose, { class: "which", title: name, "aria-pressed": String(chosen) });
    const remove = button(
      "×",
      () => this.#remove(name),
      { class: "plain step", "aria-label": `Remove ${name}`, disabled: isMissing },
    );
    return make(
      "li",
      { class: "named" },
      numberButton(index, chosen, choose),
      which,
      make("span", { class: "place" }, where),
      remove,
    );
  }
}
