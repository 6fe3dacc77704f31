// B as one setting sees it: matches, heat, figures, controls.

import { Newest, post } from "./api.js";
import { Controls } from "./controls.js";
import { complain, fill, make, say } from "./dom.js";
import { drawScale } from "./heat.js";
import { dot, numberButton, pin, truth } from "./marks.js";
import { Picture } from "./picture.js";
import { inWords } from "./view.js";

const MEANINGS = {
  match: "Where the point is in B, in pixels",
  cosine: "How alike the descriptors of both places are",
  margin: "The cosine less that of the best place elsewhere",
  "way back": "How far from the point the match of the match is; ✓: mutual",
  truth: "How far the match is from the truth, in radii of α = 0.1; ✓: right",
};

/** place: 0 for the first setting, 1 for the second. Tells of "found" when matches have come. */
export class Panel extends EventTarget {
  #asked = new Set(); // points whose matches are to be asked for
  #since = 0;

  constructor(view, place) {
    super();
    Object.assign(this, { view, place });
    this.found = [];
    this.keypoints = [];
    this.questions = new Newest(() => this.#ask());
    this.picture = new Picture("Matches in B");
    this.controls = new Controls(view.state, place === 0 ? "the first panel" : "the second panel", (setting) =>
      view.setSetting(place, setting),
    );
    this.title = make("h2", {}, place === 0 ? "B" : "B, setting 2");
    this.words = make("p", { class: "words" });
    this.waited = make("span", { class: "waited", title: "From the last change to the picture" });
    this.scale = make("div", { class: "scale", hidden: true });
    this.colours = make("canvas", { width: 256, height: 8, "aria-hidden": "true" });
    drawScale(this.colours);
    this.table = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Matches" });
    this.head = make("header", { class: "head" }, this.title, this.words, this.waited);
    this.root = make(
      "section",
      { class: "panel", "aria-label": place === 0 ? "Matches" : "Matches of the second setting" },
      this.head,
      make("div", { class: "seen" }, this.picture.root),
      make("div", { class: "under" }, this.scale, this.table),
      this.controls.root,
    );
  }

  get setting() {
    return this.view.settings[this.place];
  }

  /** Another pair is looked at. */
  showPair() {
    this.found = [];
    this.keypoints = [];
    this.picture.show(this.view.targetImage);
    this.askAll();
  }

  showSetting() {
    const said = JSON.stringify(this.setting);
    if (said === this.said) return;
    this.said = said;
    if (this.setting === undefined) return;
    this.controls.show(this.setting);
    this.words.textContent = inWords(this.setting);
    this.askAll();
  }

  /** Ask for the matches of all points. */
  askAll() {
    this.view.points.forEach((_, index) => this.#asked.add(index));
    this.#wake();
  }

  /** Ask for the chosen point's match, or for all where points came or went. */
  askChosen() {
    if (this.found.length !== this.view.points.length) return this.askAll();
    this.#asked.add(this.view.chosen);
    return this.#wake();
  }

  /** Another point is chosen: its heat may not be there. */
  showChosen() {
    if (this.view.showsHeat && this.found[this.view.chosen]?.heat === null) this.askChosen();
    this.render();
  }

  #wake() {
    this.#since = performance.now();
    this.questions.wake();
  }

  async #ask() {
    const { source, target, points, showsHeat } = this.view;
    const setting = this.setting;
    const asked = [...this.#asked].filter((index) => index < points.length);
    this.#asked.clear();
    if (setting === undefined || source === null || asked.length === 0) return this.render();
    const since = this.#since;
    const places = asked.map((index) => points[index]);
    const question = {
      source,
      target,
      points: places.map(({ x, y }) => [x, y]),
      setting,
      heat: showsHeat,
      keypoints: true,
    };
    this.root.classList.add("waiting");
    try {
      const answer = await post("match", question);
      const isOld = source !== this.view.source || target !== this.view.target || this.setting === undefined;
      if (isOld) return null;
      this.#take(asked, answer, places);
      this.render();
      if (this.root.classList.contains("failed")) say("");
      this.root.classList.remove("failed");
      this.dispatchEvent(new Event("found"));
      requestAnimationFrame(() => setTimeout(() => this.#measure(since))); // behind the frame that shows it
    } catch (error) {
      this.root.classList.add("failed");
      complain(error);
    } finally {
      this.root.classList.remove("waiting");
    }
    return null;
  }

  /** Keep an answer. from: the points that were asked for, which may have moved on. */
  #take(asked, answer, from) {
    const pair = (values) => (values ? { x: values[0], y: values[1] } : null);
    const radius = pair(answer.alpha_radius);
    asked.forEach((index, place) => {
      this.found[index] = {
        from: from[place],
        match: pair(answer.points[place]),
        score: answer.scores[place],
        margin: answer.margins[place],
        mutual: answer.mutual[place],
        back: pair(answer.back[place]),
        truth: pair(answer.truth?.[place]),
        radius,
        heat: heatOf(answer.heat, place),
      };
    });
    this.found.length = this.view.points.length;
  }

  #measure(since) {
    const waited = performance.now() - since;
    performance.measure(`match-${this.place}`, { start: since, duration: waited });
    this.waited.textContent = `${Math.round(waited)} ms`;
  }

  /** Draw what is known. */
  render() {
    const { chosen, showsHeat } = this.view;
    const known = this.found[chosen];
    const heat = showsHeat ? (known?.heat ?? null) : null;
    this.picture.drawHeat(heat);
    this.#scale(heat);
    this.picture.drawMarks((unit) => this.#marks(unit));
    fill(this.table, this.#rows());
  }

  #marks(unit) {
    const { chosen } = this.view;
    const order = this.found.map((_, index) => index).filter((index) => this.found[index]);
    order.sort((one, other) => (one === chosen) - (other === chosen));
    const known = this.found[chosen];
    const right = known?.truth ? [truth({ ...known.truth, index: chosen }, known.match, known.radius, unit)] : [];
    const pins = order.map((index) => {
      const { match, mutual } = this.found[index];
      return pin({ ...match, index, filled: mutual, chosen: index === chosen }, unit, { "aria-hidden": "true" });
    });
    return [...this.keypoints.map((point) => dot(point, unit, { "aria-hidden": "true" })), ...right, ...pins];
  }

  /** How far a match is from the truth, in alpha's radius; null where that is not known. The circle is one of the
   *  resized frame, so an ellipse on a picture that is not square. */
  missed({ match, truth: right, radius }) {
    if (!right || !radius) return null;
    return Math.hypot((match.x - right.x) / radius.x, (match.y - right.y) / radius.y);
  }

  #scale(heat) {
    this.scale.hidden = heat === null;
    if (heat === null) return;
    const [low, high] = [`cosine ${heat.low.toFixed(2)}`, heat.high.toFixed(2)];
    fill(this.scale, make("span", {}, low), this.colours, make("span", {}, high));
  }

  #rows() {
    if (this.found.length === 0) return make("p", { class: "table-empty" }, "Click in A.");
    const hasTruth = this.found.some((one) => one.truth);
    const titles = ["", "match", "cosine", "margin", "way back", ...(hasTruth ? ["truth"] : [])];
    const rows = this.found.map((one, index) => {
      const isChosen = index === this.view.chosen;
      return make(
        "tr",
        { class: isChosen ? "chosen" : null, "aria-current": isChosen ? "true" : null },
        make("td", {}, numberButton(index, false, () => this.view.choose(index))),
        make("td", {}, `${one.match.x.toFixed(0)}, ${one.match.y.toFixed(0)}`),
        make("td", {}, one.score.toFixed(3)),
        make("td", {}, one.margin.toFixed(3)),
        judged(one.mutual, `${Math.hypot(one.back.x - one.from.x, one.back.y - one.from.y).toFixed(0)} px`),
        hasTruth ? judged((this.missed(one) ?? 2) <= 1, this.missed(one)?.toFixed(1), "α") : null,
      );
    });
    const head = make(
      "tr",
      {},
      ...titles.map((title) => make("th", { scope: "col", title: MEANINGS[title] }, title)),
    );
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  }

  /** The chosen point's match, as a sentence. */
  sentence() {
    const known = this.found[this.view.chosen];
    if (!known) return "";
    const { match, score, margin, mutual } = known;
    const missed = this.missed(known);
    const judged = missed === null ? "" : missed <= 1 ? "; right" : `; wrong, ${missed.toFixed(1)} radii away`;
    const back = mutual ? "the way back returns" : "the way back ends elsewhere";
    return (
      `Point ${this.view.chosen + 1}: match at ${match.x.toFixed(0)}, ${match.y.toFixed(0)}; ` +
      `cosine ${score.toFixed(2)}, margin ${margin.toFixed(2)}; ${back}${judged}.`
    );
  }
}

/** A figure and whether it is good, in a sign as well as a colour. */
function judged(isGood, figure, unit = "") {
  if (figure === undefined) return make("td", {});
  const sign = make("span", { role: "img", "aria-label": isGood ? "yes" : "no" }, isGood ? "✓" : "✗");
  return make("td", { class: isGood ? "good" : "poor" }, sign, ` ${figure} ${unit}`);
}

/** A point's map of an answer's. */
function heatOf(heat, place) {
  if (!heat) return null;
  const { width, height, box } = heat;
  const values = Uint8Array.from(atob(heat.data[place]), (letter) => letter.charCodeAt(0));
  return { width, height, box, values, low: heat.low[place], high: heat.high[place] };
}
