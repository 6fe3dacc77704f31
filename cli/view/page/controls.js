// The controls of a setting. They are made anew where the choice itself changes (other layers, another readout), and a
// slider that is being dragged stays what it is.

import { button, fill, make, options } from "./dom.js";
import { nearest } from "./view.js";

/** Parameters by readout, each as [name, words, least, most, step, usual]; beta runs over a logarithm. */
const BETA = ["beta", "Temperature β", -3, 0, 0.05, 0.04];
const PARAMETERS = {
  softmax: [BETA],
  kernelsoftmax: [BETA, ["sigma", "Width σ, cells", 0.5, 24, 0.5, 7]],
  window: [[...BETA.slice(0, 5), 0.02], ["window", "Window, cells", 0, 24, 1, 7]],
};
const UPSAMPLES = [1, 2, 4];

/** The weights of two layers as an angle in degrees, 0 for the first alone. */
export const angleOf = ([first, second]) => (Math.atan2(second, first) * 180) / Math.PI;

/** Two weights of an angle, of norm 1. */
export function weightsAt(degrees) {
  const round = (value) => Math.round(value * 1e4) / 1e4;
  return [round(Math.cos((degrees * Math.PI) / 180)), round(Math.sin((degrees * Math.PI) / 180))];
}

/** The controls of one panel. change: takes a setting whenever one is made. */
export class Controls {
  constructor(state, name, change) {
    Object.assign(this, { state, name, change });
    this.root = make(
      "form",
      { class: "controls", "aria-label": `Setting of ${name}`, onsubmit: (event) => event.preventDefault() },
    );
  }

  /** Show a setting. */
  show(setting) {
    if (JSON.stringify(setting) === JSON.stringify(this.setting)) return;
    const focused = this.root.contains(document.activeElement) ? document.activeElement.name : null;
    this.setting = setting;
    fill(
      this.root,
      this.#prompt(),
      ...this.#layers(),
      ...this.#weights(),
      ...this.#readout(),
      this.#geometry(),
      this.#reset(),
    );
    if (focused) this.root.elements.namedItem(focused)?.focus?.({ preventScroll: true });
  }

  /** Hand on a setting of which a few values differ. again: whether other controls belong to it. */
  #set(changed, again = false) {
    const setting = { ...this.setting, ...changed };
    if (again) this.show(setting);
    this.setting = setting;
    this.change(setting);
  }

  /** Extractors that one chooses by what they are told: of texts, of learned prompts, of adapters on top of those. */
  get #told() {
    return this.state.extractors.filter((one) => one.kind !== "pixels");
  }

  #prompt() {
    const told = this.#told;
    if (told.length === 0) return null;
    const used = this.setting.layers.map((one) => one.extractor).find((key) => told.some((one) => one.key === key));
    const choose = (event) => this.#tell(told.find((one) => one.key === event.target.value));
    const select = make(
      "select",
      { name: "prompt", onchange: choose },
      ...options(told.map((one) => [one.key, one.label]), used),
    );
    return row(told.some((one) => one.kind === "adapted") ? "Prompt or adapter" : "Prompt", select);
  }

  /** Take all layers that are told something from another extractor, as far as it has them. */
  #tell(extractor) {
    const isTold = (one) => this.#told.some((own) => own.key === one.extractor);
    const weighted = this.setting.layers.map((one, index) => [one, this.setting.weights[index]]);
    const moved = weighted.flatMap(([one, weight]) => {
      if (!isTold(one)) return [[one, weight]];
      if (!(one.layer in extractor.layers)) return [];
      return [[{ ...one, extractor: extractor.key, t: nearest(extractor.layers[one.layer], one.t) }, weight]];
    });
    const first = Object.entries(extractor.layers)[0];
    const kept = moved.length > 0 ? moved : [[{ layer: first[0], t: first[1][0], extractor: extractor.key }, 1]];
    this.#set({ layers: kept.map(([one]) => one), weights: kept.map(([, weight]) => weight) }, true);
  }

  /** Which extractor a layer would be taken from: the one in use, else the first that has it. */
  #source(layer) {
    const used = this.setting.layers.map((one) => one.extractor);
    const having = this.state.extractors.filter((one) => layer in one.layers);
    return having.find((one) => used.includes(one.key)) ?? having[0];
  }

  #layers() {
    const names = [...new Set(this.state.extractors.flatMap((one) => Object.keys(one.layers)))].sort();
    return names.map((layer) => {
      const place = this.setting.layers.findIndex((one) => one.layer === layer);
      const used = this.setting.layers[place];
      const only = place >= 0 && this.setting.layers.length === 1;
      const toggle = make(
        "input",
        {
          type: "checkbox",
          name: `use-${layer}`,
          checked: place >= 0,
          disabled: only,
          onchange: () => this.#toggle(layer, place),
        },
      );
      const name = make("label", { class: "layer" }, toggle, /^\d/.test(layer) ? `Layer ${layer}` : layer);
      if (used === undefined) return make("div", { class: "row unused" }, name);
      const extractor = this.state.extractors.find((one) => one.key === used.extractor);
      const steps = extractor.layers[layer];
      const output = make("output", {}, shownStep(used.t));
      if (steps.length < 2) {
        const words = steps[0] === null ? "no timesteps" : "one timestep kept";
        return make("div", { class: "row" }, name, make("span", { class: "none" }, words), output);
      }
      const slide = (event) => {
        const t = steps[Number(event.target.value)];
        output.value = shownStep(t);
        event.target.setAttribute("aria-valuetext", shownStep(t));
        this.#set({ layers: this.setting.layers.map((one, index) => (index === place ? { ...one, t } : one)) });
      };
      const slider = range(
        `t-${layer}`,
        `Timestep of layer ${layer}`,
        0,
        steps.length - 1,
        1,
        steps.indexOf(used.t),
        slide,
      );
      slider.setAttribute("aria-valuetext", shownStep(used.t));
      return make("div", { class: "row" }, name, ticked(slider, steps.length), output);
    });
  }

  #toggle(layer, place) {
    const pairs = this.setting.layers.map((one, index) => [one, this.setting.weights[index]]);
    if (place >= 0) pairs.splice(place, 1);
    else {
      const { key, layers } = this.#source(layer);
      const steps = layers[layer];
      pairs.push([
        { layer, t: nearest(steps, this.setting.layers[0].t), extractor: key },
        pairs.length === 1 ? pairs[0][1] : 1,
      ]);
    }
    pairs.sort(([one], [other]) => (one.layer < other.layer ? -1 : 1));
    this.#set({ layers: pairs.map(([one]) => one), weights: pairs.map(([, weight]) => weight) }, true);
  }

  #weights() {
    const { layers, weights } = this.setting;
    if (layers.length < 2) return [];
    if (layers.length > 2) {
      return layers.map(({ layer }, place) => {
        const output = make("output", {}, weights[place].toFixed(2));
        const slide = (event) => {
          const changed = this.setting.weights.map(
            (own, index) => (index === place ? Number(event.target.value) : own),
          );
          if (Math.max(...changed) <= 0) return;
          output.value = changed[place].toFixed(2);
          this.#set({ weights: changed });
        };
        return row(
          `Weight of ${layer}`,
          range(`weight-${layer}`, `Weight of layer ${layer}`, 0, 1, 0.01, weights[place], slide),
          output,
        );
      });
    }
    const words = (own) => own.map((value) => value.toFixed(2)).join(" : ");
    const output = make("output", {}, words(weights));
    const slide = (event) => {
      const changed = weightsAt(Number(event.target.value));
      output.value = words(changed);
      event.target.setAttribute("aria-valuetext", words(changed));
      this.#set({ weights: changed });
    };
    const title = `Weights, layer ${layers[0].layer} to layer ${layers[1].layer}`;
    const slider = range("angle", title, 0, 90, 1, Math.round(angleOf(weights)), slide);
    slider.setAttribute("aria-valuetext", words(weights));
    return [row("Weights", slider, output)];
  }

  #readout() {
    const { readout } = this.setting;
    const choose = (event) => this.#set({ readout: event.target.value, beta: null, sigma: null, window: null }, true);
    const select = make(
      "select",
      { name: "readout", onchange: choose },
      ...options(this.state.readouts.map((own) => [own, own]), readout),
    );
    return [row("Readout", select), ...(PARAMETERS[readout] ?? []).map((parameter) => this.#parameter(...parameter))];
  }

  #parameter(name, words, least, most, step, usual) {
    const [toSlider, toValue] = name === "beta" ? [Math.log10, (own) => Number((10 ** own).toPrecision(2))] : [
      Number,
      Number,
    ];
    const value = this.setting[name] ?? usual;
    const output = make("output", {}, String(value));
    const slide = (event) => {
      const changed = toValue(Number(event.target.value));
      output.value = String(changed);
      this.#set({ [name]: changed });
    };
    return row(words, range(name, words, least, most, step, toSlider(value), slide), output);
  }

  #geometry() {
    const { geometry, upsample } = this.setting;
    const choose = (name, read) => (event) => this.#set({ [name]: read(event.target.value) });
    const geometries = options(this.state.geometries.map((own) => [own, own]), geometry);
    const said = { name: "geometry", "aria-label": "Geometry", onchange: choose("geometry", String) };
    const shape = make("select", said, ...geometries);
    const factors = [...new Set([...UPSAMPLES, upsample])].sort((one, other) => one - other);
    const words = options(factors.map((own) => [String(own), `${own}x`]), String(upsample));
    const label = "Upsampling of the finest map";
    const times = make(
      "select",
      { name: "upsample", "aria-label": label, onchange: choose("upsample", Number) },
      ...words,
    );
    return make("div", { class: "row" }, make("span", {}, "Geometry"), shape, times);
  }

  #reset() {
    const reset = () => this.#set(structuredClone(this.state.defaults), true);
    return make("div", { class: "row" }, button("Usual setting", reset, { name: "reset" }));
  }
}

function row(label, control, output = null) {
  control.setAttribute("aria-label", control.getAttribute("aria-label") ?? label);
  return make("div", { class: "row" }, make("span", {}, label), control, output);
}

function range(name, label, min, max, step, value, slide) {
  return make("input", { type: "range", name, "aria-label": label, min, max, step, value, oninput: slide });
}

/** A slider of few places, with a tick for each. */
function ticked(slider, places) {
  if (places > 30) return slider;
  const ticks = Array.from({ length: places }, () => make("i", {}));
  return make("span", { class: "ticked" }, make("span", { class: "ticks", "aria-hidden": "true" }, ...ticks), slider);
}

const shownStep = (t) => (t === null ? "no t" : `t ${t}`);
