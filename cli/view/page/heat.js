// Maps of cells as colours.

const INFERNO = ("000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 " +
  "f9cb35 f2ea69 fcffa4").split(" ");
const VIRIDIS = ("440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b " +
  "addc30 d8e219 fde725").split(" ");

/** Of a grid's cells, as its report draws them: 256 x RGB. */
export const GRID = table(VIRIDIS, (share) => share);

/** Of correlations: the colours of `dualsd match --heatmap`. All of a map is much alike: squares tell the top apart,
 *  and what is low lets the picture through. */
const HEAT = table(INFERNO, (share) => share ** 2);
const COVER = Uint8ClampedArray.from({ length: 256 }, (_, value) => 255 * (0.3 + 0.5 * (value / 255) ** 2));

/** A map of (height, width) numbers of 0 to 255 as a canvas of as many pixels. */
export function heatCanvas({ width, height, values }) {
  const pixels = new ImageData(width, height);
  values.forEach((value, cell) => {
    pixels.data.set(HEAT.subarray(3 * value, 3 * value + 3), 4 * cell);
    pixels.data[4 * cell + 3] = COVER[value];
  });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw a map over a picture. size: the picture's width and height. Between centres of cells colours are blended. */
export function drawHeat(canvas, map, size) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const [x, y, width, height] = map.box; // of the map's outer edges, in pixels, whose centres are whole numbers
  const [across, down] = [canvas.width / size.width, canvas.height / size.height];
  context.drawImage(heatCanvas(map), (x + 0.5) * across, (y + 0.5) * down, width * across, height * down);
}

/** The colours from lowest to highest, on a canvas. */
export function drawScale(canvas) {
  const values = Uint8Array.from({ length: 256 }, (_, value) => value);
  canvas.getContext("2d").drawImage(heatCanvas({ width: 256, height: 1, values }), 0, 0, canvas.width, canvas.height);
}

/** shaped: from a share of the way from lowest to highest to one of the way through the colours. */
function table(colours, shaped) {
  const stops = colours.map((colour) => [0, 2, 4].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const found = new Uint8ClampedArray(3 * 256);
  for (let value = 0; value < 256; value++) {
    const place = shaped(value / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    for (let part = 0; part < 3; part++) {
      found[3 * value + part] = stops[low][part] + (place - low) * (stops[low + 1][part] - stops[low][part]);
    }
  }
  return found;
}
