// Kept runs: the pairs of an evaluation, the worst first; the cells of a grid, and the pairs that one wins and loses.

import { get } from "./api.js";
import { button, byId, complain, fill, make, options, say } from "./dom.js";
import { GRID } from "./heat.js";
import { inWords } from "./view.js";

const KINDS = [
  ["near", "near"],
  ["another", "another keypoint"],
  ["mirrored", "mirrored"],
  ["elsewhere", "elsewhere"],
];
const HINT = "Choose a cell to see the pairs that it wins and loses against the best one.";
const MOST_ROWS = 40; // of configurations that are no plane

/** show: takes a pair that is to be looked at. */
export class Runs {
  constructor(view, show) {
    Object.assign(this, { view, show, answer: null, pairs: [], asked: {} });
    this.root = byId("runs");
  }

  /** Begin with the newest run, or stay where it was. */
  open() {
    if (this.run === undefined) this.#choose(this.view.state.runs[0].path);
  }

  /** Another pair is looked at: which one of the list. */
  showPair() {
    this.root.querySelectorAll(".pair:not(.cell)").forEach((own, place) => {
      const { source, target } = this.pairs[place];
      if (source === this.view.source && target === this.view.target) own.setAttribute("aria-current", "true");
      else own.removeAttribute("aria-current");
    });
  }

  #choose(path) {
    this.run = path;
    this.group = undefined;
    this.#ask({});
  }

  /** Ask for the run, with a category, a kind of error, a cell. */
  async #ask(asked) {
    this.asked = asked;
    try {
      const answer = await get("run", { path: this.run, ...asked });
      if (this.asked !== asked) return;
      this.answer = answer;
      this.#fill();
    } catch (error) {
      complain(error);
      fill(this.root, this.#title());
    }
  }

  #title() {
    const { runs } = this.view.state;
    const select = make("select", { "aria-label": "Run", onchange: (event) => this.#choose(event.target.value) });
    return fill(select, ...options(runs.map(({ path, label }) => [path, `${path}: ${label}`]), this.run));
  }

  #fill() {
    const kind = { eval: () => this.#evaluation(), grid: () => this.#grid(), train: () => this.#learned(), adapt: () => this.#learned() };
    const focused = this.root.contains(document.activeElement) ? document.activeElement.name : null;
    this.pairs = [];
    fill(this.root, this.#title(), ...kind[this.answer.kind]());
    if (focused) this.root.querySelector(`[name="${focused}"]`)?.focus();
    this.showPair();
  }

  /** Use settings of a run in the panels, as far as the store keeps its maps. */
  #use(settings) {
    const known = settings.filter(Boolean);
    if (known.length === 0) {
      return say("The store keeps no maps of this run: the pairs are shown as the panel is set.", true);
    }
    const shown = known.map((setting) => this.view.repaired(setting));
    this.view.setSettings(shown);
    const layersOf = (settings) => JSON.stringify(settings.map((setting) => setting.layers));
    const isSame = layersOf(shown) === layersOf(known);
    if (!isSame) say("The store no longer keeps all maps of this run: what is nearest is shown.", true);
    return undefined;
  }

  #evaluation() {
    const { answer, asked } = this;
    const { category = "", kind = "" } = asked;
    const choose = (name) => (event) => this.#ask({ ...asked, [name]: event.target.value, start: null });
    const categories = [["", "all categories"], ...answer.categories.map((own) => [own, own])];
    const hasKinds = answer.pairs.some((pair) => pair.misses !== null);
    const select = (name, label, choices, chosen) =>
      make("select", { name, "aria-label": label, onchange: choose(name) }, ...options(choices, chosen));
    const readouts = answer.readouts.map((own) => [own, own]);
    const alphas = answer.alphas.map((own) => [String(own), `α ${own}`]);
    return [
      make("div", { class: "sieve" },
        select("category", "Category", categories, category),
        hasKinds || kind !== "" ? select("kind", "Kind of error", [["", "all errors"], ...KINDS], kind) : null,
        select("readout", "Readout", readouts, answer.readout),
        select("alpha", "Alpha", alphas, String(answer.alpha)),
      ),
      this.#apply("Use its setting", [answer.setting]),
      this.#list(answer.pairs, (pair) => `${(100 * pair.pck).toFixed(0)} %`, (pair) => why(pair)),
      this.#more(answer.total, answer.pairs.length),
    ];
  }

  #apply(words, settings) {
    const known = settings.some(Boolean);
    return button(words, () => this.#use(settings), { disabled: !known });
  }

  #more(total, shown) {
    const start = this.asked.start ?? 0;
    const step = (words, from) => button(words, () => this.#ask({ ...this.asked, start: from }));
    return make("div", { class: "chips" },
      make(
        "span",
        { class: "words" },
        total === 0 ? "No pair is like that." : `${start + 1} to ${start + shown} of ${total} pairs`,
      ),
      start > 0 && step("Worse", Math.max(0, start - 200)),
      start + shown < total && step("Better", start + shown),
    );
  }

  /** Pairs to press. figure, words: of a pair. */
  #list(pairs, figure, words, prepare = () => {}) {
    const buttons = pairs.map((pair) => {
      const [source, target] = pair.ids.map(stem);
      const press = () => {
        prepare();
        this.show(pair);
      };
      return make("button", { type: "button", class: "pair", title: pair.ids.join(" → "), onclick: press },
        make("span", { class: "names" }, `${pair.category} ${source} → ${target}`),
        make("span", { class: "figure" }, figure(pair)),
        make("span", { class: "why" }, words(pair)),
      );
    });
    this.pairs.push(...pairs);
    const list = make(
      "div",
      { class: "pairs", role: "group", "aria-label": "Pairs", onkeydown: (event) => walk(event) },
    );
    return fill(list, ...buttons);
  }

  /** Prompts, or an adapter. */
  #learned() {
    const { extractors, kind } = this.answer;
    const isAdapter = kind === "adapt";
    const [key] = extractors;
    const known = this.view.state.extractors.find((one) => one.key === key);
    if (known === undefined) {
      const words = isAdapter
        ? "The store keeps no maps of this adapter: `dualsd cache maps --adapter RUN` makes them."
        : "The store has no maps with these prompts yet: `dualsd eval --prompts RUN` makes them.";
      return [make("p", { class: "words" }, words)];
    }
    const layers = Object.entries(known.layers).map(([layer, steps]) => ({ layer, t: steps[0], extractor: key }));
    const setting = { ...this.view.settings[0], layers, weights: layers.map(() => 1) };
    const its = isAdapter ? "Its maps are" : "Its prompts are";
    return [
      make("p", { class: "words" }, `${its} among the panel's: ${known.label}.`),
      this.#apply(`Look through its ${isAdapter ? "maps" : "prompts"}`, [setting]),
      this.#apply("Compare with what is shown", [this.view.settings[0], setting]),
    ];
  }

  #grid() {
    const { answer } = this;
    const groups = new Map();
    answer.cells.forEach((cell, number) => {
      const name = cell.layers.join(" + ");
      groups.set(name, [...(groups.get(name) ?? []), { ...cell, number }]);
    });
    const chosen = answer.cells[answer.cell ?? answer.best];
    this.group ??= chosen.layers.join(" + ");
    const choose = (event) => {
      this.group = event.target.value;
      this.#fill();
    };
    const names = [...groups.keys()].map((name) => [name, `layer${name.includes("+") ? "s" : ""} ${name}`]);
    const cells = groups.get(this.group);
    return [
      make("select", { name: "layers", "aria-label": "Layers", onchange: choose }, ...options(names, this.group)),
      cells[0].layers.length <= 2 ? this.#plane(cells) : this.#lines(cells),
      ...(answer.cell === undefined ? [make("p", { class: "words" }, HINT)] : this.#duel()),
    ];
  }

  /** Cells of one timestep, or of two: of each the best weights. */
  #plane(cells) {
    const best = new Map();
    for (const cell of cells) {
      const place = cell.t.join();
      if (!(best.get(place)?.pck >= cell.pck)) best.set(place, cell);
    }
    const steps = (layer) => [...new Set(cells.map((cell) => cell.t[layer]))].sort((one, other) => one - other);
    const isTwo = cells[0].layers.length === 2;
    const [across, down] = [steps(isTwo ? 1 : 0), isTwo ? steps(0) : [null]];
    const values = [...best.values()].map((cell) => cell.pck);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const [first, second] = cells[0].layers;
    const caption = isTwo ? `t of layer ${first} ↓, of layer ${second} →` : `t of layer ${first} →`;
    const columns = across.map((t) => make("th", { scope: "col" }, shownStep(t)));
    const head = make("tr", {}, make("th", { "aria-hidden": "true" }, ""), ...columns);
    const rows = down.map((t) => {
      const own = across.map((other) => best.get((isTwo ? [t, other] : [other]).join()));
      const shown = own.map((cell) => make("td", {}, cell === undefined ? "" : this.#cell(cell, low, high)));
      return make("tr", {}, make("th", { scope: "row" }, isTwo ? shownStep(t) : ""), ...shown);
    });
    const note = `PCK@${this.answer.alpha} in %, of each cell its best weights. ${caption}`;
    const table = make(
      "table",
      { class: "cells" },
      make("caption", { class: "unseen" }, note),
      make("thead", {}, head),
      make("tbody", {}, ...rows),
    );
    return make("div", {}, make("p", { class: "words" }, note), make("div", { class: "scroll bare" }, table));
  }

  #cell(cell, low, high) {
    const share = high > low ? (cell.pck - low) / (high - low) : 1;
    const colour = Math.round(255 * share);
    const isChosen = cell.number === (this.answer.cell ?? this.answer.best);
    const title = `${cell.name}: ${(100 * cell.pck).toFixed(2)} %`;
    const said = { class: null, title, "aria-label": title, "aria-pressed": String(isChosen) };
    const choose = () => this.#ask({ ...this.asked, cell: cell.number });
    const coloured = button((100 * cell.pck).toFixed(0), choose, said);
    coloured.style.background = `rgb(${GRID.subarray(3 * colour, 3 * colour + 3).join(" ")})`;
    coloured.style.color = share > 0.5 ? "#000" : "#fff";
    return coloured;
  }

  /** The best of other configurations, one a line. */
  #lines(cells) {
    const best = [...cells].sort((one, other) => other.pck - one.pck).slice(0, MOST_ROWS);
    const buttons = best.map((cell) => {
      const onclick = () => this.#ask({ ...this.asked, cell: cell.number });
      const name = make("span", { class: "names" }, cell.name);
      const figure = make("span", { class: "figure" }, `${(100 * cell.pck).toFixed(1)} %`);
      return make("button", { type: "button", class: "pair cell", onclick }, name, figure);
    });
    return make("div", { class: "pairs short" }, ...buttons);
  }

  /** What a cell wins and loses against the best. */
  #duel() {
    const { answer } = this;
    const settings = [answer.setting, answer.best_setting];
    const prepare = () => settings.every(Boolean) && this.#use(settings);
    const percent = (share) => `${(100 * share).toFixed(0)} %`;
    const both = (pair) => `${percent(pair.pck)} here, ${percent(pair.best_pck)} the best`;
    const lead = (pair) => points(pair.pck - pair.best_pck);
    const points = (share) => `${share > 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(0)}`;
    const listed = (words, pairs) => [
      make("h3", {}, `${words} ${pairs.length}${pairs.length === 200 ? " and more" : ""}`),
      pairs.length > 0 && this.#list(pairs, lead, both, prepare),
    ];
    const [own, best] = [answer.cells[answer.cell], answer.cells[answer.best]];
    if (answer.cell === answer.best) {
      const words = make("p", { class: "words" }, `This is the best: ${own.name}.`);
      return [words, this.#apply("Use its setting", [answer.setting])];
    }
    return [
      make("p", { class: "words" }, `${own.name} against the best, ${best.name}`),
      this.#apply("Show both", settings),
      ...listed("Wins", answer.wins),
      ...listed("Loses", answer.loses),
    ];
  }
}

/** Arrow keys go through a list. */
function walk(event) {
  const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const to = next && event.target.closest(".pair")?.[next];
  if (!to) return;
  event.preventDefault();
  event.stopPropagation();
  to.focus();
  to.click();
}

function why({ misses, points }) {
  if (misses === null) return `${points} points`;
  const said = KINDS.filter(([kind]) => misses[kind] > 0).map(([kind, words]) => `${misses[kind]} ${words}`);
  return `${misses.right} of ${points} right${said.length > 0 ? "; " : ""}${said.join(", ")}`;
}

const stem = (id) => id.slice(id.indexOf("/") + 1);
const shownStep = (t) => (t === null ? "–" : String(t));
