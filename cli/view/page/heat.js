// Maps of cells as colours.

const INFERNO = ("000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 " +
  "f9cb35 f2ea69 fcffa4").split(" ");
const VIRIDIS = ("440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b " +
  "addc30 d8e219 fde725").split(" ");

/** Of correlations, as `dualsd match --heatmap` draws them, and of a grid's cells, as its report does: 256 x RGB. */
export const [HEAT, GRID] = [INFERNO, VIRIDIS].map(table);

/** A map of (height, width) numbers of 0 to 255 as a canvas of as many pixels. */
export function heatCanvas({ width, height, values }) {
  const pixels = new ImageData(width, height);
  values.forEach((value, cell) => {
    pixels.data.set(HEAT.subarray(3 * value, 3 * value + 3), 4 * cell);
    pixels.data[4 * cell + 3] = 255;
  });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw a map over a picture. size: the picture's width and height. Between the centres of cells colours are blended. */
export function drawHeat(canvas, map, size) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const [x, y, width, height] = map.box; // of the map's outer edges, in pixels, whose centres are whole numbers
  const [across, down] = [canvas.width / size.width, canvas.height / size.height];
  context.drawImage(heatCanvas(map), (x + 0.5) * across, (y + 0.5) * down, width * across, height * down);
}

function table(colours) {
  const stops = colours.map((colour) => [0, 2, 4].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const found = new Uint8ClampedArray(3 * 256);
  for (let value = 0; value < 256; value++) {
    const place = (value / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    for (let part = 0; part < 3; part++) {
      found[3 * value + part] = stops[low][part] + (place - low) * (stops[low + 1][part] - stops[low][part]);
    }
  }
  return found;
}
