// The view as a picture: one SVG that holds everything, or its pixels.

import { draw } from "./dom.js";
import { inWords } from "./view.js";

const WIDTH = 640; // of each image
const GAP = 24;
const LINE = 26;

/** Save the view. panels: those shown. form: "svg" or "png". */
export async function save(view, source, panels, form) {
  const { text, width, height } = await whole(view, source, panels);
  const svg = new Blob([text], { type: "image/svg+xml" });
  const name = `dualsd-${plain(view.sourceImage.id)}-${plain(view.targetImage.id)}`;
  download(form === "svg" ? svg : await pixels(svg, width, height), `${name}.${form}`);
}

async function whole(view, source, panels) {
  const parts = [source.picture, ...panels.map((panel) => panel.picture)].map((picture) => picture.contents(WIDTH));
  const titles = [`A: ${view.sourceImage.id}`, ...panels.map(() => `B: ${view.targetImage.id}`)];
  const notes = ["", ...panels.map((panel) => inWords(panel.setting))];
  const tallest = Math.max(...parts.map(({ image }) => (WIDTH * image.height) / image.width));
  const width = parts.length * WIDTH + (parts.length + 1) * GAP;
  const height = tallest + 2 * LINE + 2 * GAP;
  const columns = await Promise.all(
    parts.map((part, index) => column(part, titles[index], notes[index], GAP + index * (WIDTH + GAP))),
  );
  const grey = draw("filter", { id: "grey" }, draw("feColorMatrix", { type: "saturate", values: 0 }));
  const paper = draw("rect", { width, height, fill: "#fff" });
  const sheet = {
    xmlns: "http://www.w3.org/2000/svg",
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    "font-family": "system-ui, sans-serif",
  };
  const svg = draw("svg", sheet, draw("defs", {}, grey), paper, ...columns);
  return { text: new XMLSerializer().serializeToString(svg), width, height };
}

async function column({ image, photo, heat, marks }, title, note, left) {
  const tall = (WIDTH * image.height) / image.width;
  const box = { x: -0.5, y: -0.5, width: image.width, height: image.height, preserveAspectRatio: "none" };
  const layers = [draw("image", { ...box, href: await asData(photo), filter: heat === null ? null : "url(#grey)" })];
  if (heat !== null) layers.push(draw("image", { ...box, href: heat }));
  const frame = {
    x: left,
    y: GAP + LINE,
    width: WIDTH,
    height: tall,
    viewBox: `-0.5 -0.5 ${image.width} ${image.height}`,
  };
  const line = (text, y, looks) => draw("text", { x: left, y, ...looks }, text);
  return draw(
    "g",
    {},
    line(title, GAP + LINE / 2, { "font-size": 17, "font-weight": 600, fill: "#1d2026" }),
    draw("svg", { ...frame, overflow: "visible" }, ...layers, ...marks),
    line(note, GAP + LINE + tall + LINE * 0.9, { "font-size": 15, fill: "#596070" }),
  );
}

/** An image of the page as an address that holds it. */
async function asData(photo) {
  await photo.decode();
  const canvas = Object.assign(
    document.createElement("canvas"),
    { width: photo.naturalWidth, height: photo.naturalHeight },
  );
  canvas.getContext("2d").drawImage(photo, 0, 0);
  return canvas.toDataURL("image/png");
}

async function pixels(svg, width, height) {
  const address = URL.createObjectURL(svg);
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(image, 0, 0, width, height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

function download(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const plain = (id) => id.replace(/[^\p{L}\p{N}]+/gu, "-");
