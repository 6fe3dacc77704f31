// Elements out of names, properties and children. Text is only ever text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Properties that begin with `on` are listeners, others attributes; false and null are left out. */
export function make(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** An SVG element. */
export function draw(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

/** Give an element these children in place of its own; what is no child is left out. */
export function fill(element, ...children) {
  element.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** A button, plain where its properties say nothing else. */
export const button = (words, onclick, properties = {}) =>
  make("button", { type: "button", class: "plain", ...properties, onclick }, words);

/** The element of the page with an identifier. */
export const byId = (name) => document.getElementById(name);

/** A labelled `<option>` for each of some values. */
export function options(pairs, chosen) {
  return pairs.map(([value, label]) => make("option", { value, selected: value === chosen }, label));
}

const SAID_FOR = 6000; // milliseconds; errors stay

let said = 0;

/** What the page says in its line of status. */
export function say(text, isError = false) {
  const line = byId("status");
  line.textContent = text;
  line.classList.toggle("error", isError);
  clearTimeout(said);
  if (!isError) said = setTimeout(() => (line.textContent = ""), SAID_FOR);
}

/** Say what went wrong, in the server's own sentence where it is one. */
export function complain(error) {
  const lost = error instanceof TypeError && /fetch/i.test(error.message);
  say(lost ? "The server does not answer: is `dualsd view` still running?" : error.message, true);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  return fill(element, ...children);
}
