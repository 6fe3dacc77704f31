// What is drawn on pictures, as SVG in pixels of the image, whose centres are whole numbers. `unit` is the length of a
// pixel of the screen. Looks stand in attributes, so that a saved picture needs no stylesheet.

import { draw, make } from "./dom.js";

/** Okabe and Ito's, which people with any kind of colour vision tell apart; numbers tell the rest. */
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"];
const DARK = new Set(["#0072B2", "#D55E00", "#009E73", "#000000"]);

export const colourOf = (index) => COLOURS[index % COLOURS.length];

/** A button with a point's number, in its colour. isPressed: whether it is the chosen one's, of several. */
export function numberButton(index, isPressed, onclick) {
  const said = { "aria-label": `Point ${index + 1}`, "aria-pressed": String(isPressed) };
  const button = make("button", { type: "button", class: "number", ...said, onclick }, String(index + 1));
  button.style.setProperty("--colour", colourOf(index));
  return button;
}

const PIN = "M0 0C-1.5-5-8.5-8.5-8.5-16a8.5 8.5 0 1 1 17 0C8.5-8.5 1.5-5 0 0Z";

/** A numbered pin whose tip is the point: filled where the match is mutual, else hollow. */
export function pin({ x, y, index, filled, chosen }, unit, attributes = {}) {
  const colour = colourOf(index);
  const ink = !filled || !DARK.has(colour) ? "#000" : "#fff";
  const head = {
    d: PIN,
    fill: filled ? colour : "#fff",
    stroke: filled ? "#fff" : colour,
    "stroke-width": filled ? 1.5 : 2.5,
  };
  const figure = {
    y: -12.2,
    fill: ink,
    "text-anchor": "middle",
    "font-size": index < 9 ? 11 : 9.5,
    "font-weight": 700,
  };
  const halo = {
    d: PIN,
    fill: "none",
    stroke: "#000",
    "stroke-width": 7,
    "stroke-opacity": 0.55,
    "stroke-linejoin": "round",
  };
  const ring = { ...halo, stroke: "#fff", "stroke-width": 4.5, "stroke-opacity": 1 };
  return draw(
    "g",
    { class: "pin", transform: at(x, y, unit), "font-family": "system-ui, sans-serif", ...attributes },
    ...(chosen ? [draw("path", halo), draw("path", ring)] : []),
    draw("path", head),
    draw("text", figure, String(index + 1)),
  );
}

/** Where a keypoint is. */
export function dot({ x, y }, unit, attributes = {}) {
  const looks = { r: 3.5, fill: "#fff", stroke: "#000", "stroke-width": 1.5 };
  return draw(
    "g",
    { class: "dot", transform: at(x, y, unit), ...attributes },
    draw("circle", { r: 11, fill: "transparent" }),
    draw("circle", looks),
  );
}

/** Where a match should be, and within how far of it it counts; with a line from where it is. */
export function truth({ x, y, index }, match, radius, unit) {
  const colour = colourOf(index);
  const lines = [["#000", 4], ["#fff", 2]].map(([stroke, width]) =>
    draw("path", { d: "M-7 0H7M0-7V7", stroke, "stroke-width": width, "stroke-linecap": "round" }),
  );
  const round = { cx: x, cy: y, rx: radius?.x, ry: radius?.y, fill: "none" };
  return draw(
    "g",
    { class: "truth" },
    ...line({ x, y }, match, colour, unit),
    ...(radius === null ? [] : [
      draw("ellipse", { ...round, stroke: "#000", "stroke-opacity": 0.6, "stroke-width": 3.5 * unit }),
    ]),
    ...(radius === null ? [] : [draw(
      "ellipse",
      { ...round, stroke: "#fff", "stroke-width": 1.6 * unit, "stroke-dasharray": `${5 * unit} ${3 * unit}` },
    )]),
    draw("g", { transform: at(x, y, unit) }, ...lines),
  );
}

/** Where the way back ends, with a line from where it should. */
export function wayBack({ x, y, index }, start, unit) {
  const diamond = { d: "M0-6.5L6.5 0 0 6.5-6.5 0Z", fill: "#fff", stroke: colourOf(index), "stroke-width": 2.5 };
  return draw(
    "g",
    { class: "back" },
    ...line({ x, y }, start, colourOf(index), unit),
    draw("path", { ...diamond, transform: at(x, y, unit) }),
  );
}

function line(from, to, colour, unit) {
  const ends = { x1: from.x, y1: from.y, x2: to.x, y2: to.y, "stroke-linecap": "round" };
  const dashes = { stroke: colour, "stroke-width": 2 * unit, "stroke-dasharray": `${5 * unit} ${4 * unit}` };
  return [
    draw("line", { ...ends, stroke: "#fff", "stroke-opacity": 0.8, "stroke-width": 4 * unit }),
    draw("line", { ...ends, ...dashes }),
  ];
}

const at = (x, y, unit) => `translate(${x} ${y}) scale(${unit})`;
