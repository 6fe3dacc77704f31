// What is looked at: a pair, points in A, one setting or two. It stands in the address's fragment, so that a reload, or
// the address in a message, shows the same.

const SAVED_AFTER = 150; // milliseconds: browsers limit how often an address may change
export const MOST_POINTS = 40;

/** Tells of "pair", "points", "chosen" and "settings". state: what the server says of the store. */
export class View extends EventTarget {
  #timer = 0;

  constructor(state) {
    super();
    this.state = state;
    this.byRow = new Map(state.images.map((image) => [image.row, image]));
    this.source = this.target = null;
    this.points = [];
    this.chosen = 0;
    this.settings = state.defaults === null ? [] : [state.defaults];
    this.showsHeat = true;
  }

  get sourceImage() {
    return this.byRow.get(this.source);
  }

  get targetImage() {
    return this.byRow.get(this.target);
  }

  tell(what) {
    this.dispatchEvent(new Event(what));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => history.replaceState(null, "", this.address()), SAVED_AFTER);
  }

  /** An image that was handed over after the page was loaded. */
  add(image) {
    this.state.images.push(image);
    this.byRow.set(image.row, image);
  }

  /** Look at a pair. points: in A; where they are not given, those of a kept source stay. */
  showPair(source, target, points = null) {
    const isNew = source !== this.source;
    [this.source, this.target] = [source, target];
    if (points !== null || isNew) {
      this.points = (points ?? []).slice(0, MOST_POINTS);
      this.chosen = 0;
    }
    this.tell("pair");
  }

  /** Add a point, choose it; beyond `MOST_POINTS` the last one is moved. */
  addPoint(x, y) {
    if (this.points.length < MOST_POINTS) this.points.push({});
    this.chosen = this.points.length - 1;
    this.movePoint(x, y);
    this.tell("chosen");
  }

  /** Move the chosen point, or make the first; within the image. */
  movePoint(x, y) {
    const image = this.sourceImage;
    const within = (value, side) => Math.round(Math.min(Math.max(value, 0), side - 1) * 100) / 100;
    this.points[this.chosen] = { x: within(x, image.width), y: within(y, image.height) };
    this.tell("points");
  }

  choose(index) {
    if (index < 0 || index >= this.points.length || index === this.chosen) return;
    this.chosen = index;
    this.tell("chosen");
  }

  removePoint(index = this.chosen) {
    this.points.splice(index, 1);
    this.chosen = Math.max(0, Math.min(this.chosen, this.points.length - 1));
    this.tell("points");
    this.tell("chosen");
  }

  setPoints(points) {
    this.points = points.slice(0, MOST_POINTS);
    this.chosen = 0;
    this.tell("points");
    this.tell("chosen");
  }

  setSetting(panel, setting) {
    this.settings[panel] = setting;
    this.tell("settings");
  }

  /** Show one setting or two. */
  setSettings(settings) {
    this.settings = settings.slice(0, 2).map((setting) => structuredClone(setting));
    this.tell("settings");
  }

  /** Show a second setting, a copy of the first, or no longer. */
  compare(on) {
    if (this.settings.length === 0) return;
    this.setSettings(on ? [this.settings[0], this.settings[0]] : [this.settings[0]]);
  }

  address() {
    const said = new URLSearchParams();
    if (this.sourceImage) said.set("a", this.sourceImage.id);
    if (this.targetImage) said.set("b", this.targetImage.id);
    said.set("p", this.points.map(({ x, y }) => `${x},${y}`).join(" "));
    if (this.chosen > 0) said.set("n", this.chosen + 1);
    if (!this.showsHeat) said.set("heat", "off");
    for (const setting of this.settings) said.append("s", JSON.stringify(setting));
    return `${location.search}#${said}`;
  }

  /** Take what a fragment says, as far as the store still has it; whether it named a pair. */
  read(fragment) {
    const said = new URLSearchParams(fragment.replace(/^#/, ""));
    const row = (name) => this.state.images.find((image) => image.id === said.get(name))?.row;
    const settings = said.getAll("s").slice(0, 2).map((text) => this.repaired(parsed(text)));
    if (settings.length > 0 && this.settings.length > 0) this.settings = settings;
    this.showsHeat = said.get("heat") !== "off";
    const [source, target] = [row("a"), row("b")];
    if (source === undefined || target === undefined) return false;
    const points = (said.get("p") ?? "").split(" ").map((text) => text.split(",").map(Number));
    this.showPair(source, target, points.filter(isPoint).map(([x, y]) => ({ x, y })));
    this.choose(Number(said.get("n") ?? 1) - 1);
    this.tell("settings");
    return true;
  }

  /** A setting as the store can show it: layers and timesteps that have maps, and the rest as it is or the usual. */
  repaired(said) {
    const usual = this.state.defaults;
    if (usual === null) return null;
    const given = Object.entries(said ?? {}).filter(([name, value]) => name in usual && value !== undefined);
    const setting = { ...structuredClone(usual), ...Object.fromEntries(given) };
    const layers = Array.isArray(setting.layers) ? setting.layers.map((one) => this.#cached(one)) : [];
    const kept = layers.map((one, index) => [one, weight(setting.weights?.[index])]).filter(([one]) => one !== null);
    const known = kept.length > 0 ? kept : usual.layers.map((one, index) => [one, usual.weights[index]]);
    return { ...setting, layers: known.map(([one]) => one), weights: known.map(([, own]) => own) };
  }

  #cached(one) {
    const having = this.state.extractors.filter((extractor) => one?.layer in extractor.layers);
    const extractor = having.find((own) => own.key === one.extractor) ?? having[0];
    if (extractor === undefined) return null;
    return { layer: one.layer, t: nearest(extractor.layers[one.layer], one.t), extractor: extractor.key };
  }
}

/** Of some timesteps the one that is nearest to another; null for what has none. */
export function nearest(timesteps, wanted) {
  if (wanted === null || timesteps.includes(wanted)) return timesteps.includes(wanted) ? wanted : timesteps[0];
  return timesteps.reduce((best, own) => (Math.abs(own - wanted) < Math.abs(best - wanted) ? own : best));
}

/** `2@261 + 3@200 · 0.80 : 0.60 · nn · corners`. */
export function inWords(setting) {
  const layers = setting.layers.map(({ layer, t }) => (t === null ? layer : `${layer}@${t}`)).join(" + ");
  const weights = setting.weights.length > 1 ? [setting.weights.map((own) => own.toFixed(2)).join(" : ")] : [];
  const upsample = setting.upsample > 1 ? [`${setting.upsample}x`] : [];
  return [layers, ...weights, setting.readout, setting.geometry, ...upsample].join(" · ");
}

const weight = (value) => (Number.isFinite(value) && value >= 0 ? value : 1);
const isPoint = (numbers) => numbers.length === 2 && numbers.every(Number.isFinite);

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
