/**
 * A picture on a canvas, and over it a class activation map. Both are drawn as the server's own overlay is: what the
 * network did not see is dimmed, and the stronger the map, the less of the picture shows through.
 *
 * @import { Explanation } from "./types.js"
 */

import { VIRIDIS } from "./viridis.js";

const SIDE = 640; // pixels of a picture's longer side on its canvas, unless told otherwise
const MAP_SIDE = 256; // and of a map's; the browser enlarges it smoothly
const OUTSIDE = 0.4; // of black over what the network did not see
const PIXELATED = 96; // pixels: a smaller picture is shown in its pixels, as the network has it

/**
 * @param {HTMLCanvasElement} canvas takes the size of the picture, enlarged or reduced
 * @param {ImageBitmap} bitmap
 * @param {Explanation | null} [explained] dims what is outside of its region
 * @param {number} [side]
 */
export function drawPicture(canvas, bitmap, explained = null, side = SIDE) {
  const scale = side / Math.max(bitmap.width, bitmap.height);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = contextOf(canvas);
  context.fillStyle = "white"; // seen through transparent pixels
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = Math.max(bitmap.width, bitmap.height) > PIXELATED;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (!explained) return;
  const [width, height] = explained.image_size;
  const [left, top, right, bottom] = explained.region;
  context.scale(canvas.width / width, canvas.height / height);
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(left, top, right - left, bottom - top);
  context.fillStyle = `rgb(0 0 0 / ${OUTSIDE})`;
  context.fill("evenodd");
  context.setTransform(1, 0, 0, 1, 0, 0);
}

/** @param {HTMLCanvasElement} canvas takes the picture's aspect @param {Explanation} explained */
export function drawMap(canvas, explained) {
  const [width, height] = explained.image_size;
  const scale = MAP_SIDE / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const [left, top, right, bottom] = explained.region;
  const columns = weights(canvas.width, width, left, right, explained.map[0].length);
  const rows = weights(canvas.height, height, top, bottom, explained.map.length);
  const context = contextOf(canvas);
  const image = context.createImageData(canvas.width, canvas.height);
  let at = 0;
  for (const row of rows) {
    for (const column of columns) {
      const strength = row && column ? interpolated(explained.map, row, column) : 0;
      const colour = Math.round(strength * 255);
      image.data[at] = VIRIDIS[colour * 3];
      image.data[at + 1] = VIRIDIS[colour * 3 + 1];
      image.data[at + 2] = VIRIDIS[colour * 3 + 2];
      image.data[at + 3] = colour;
      at += 4;
    }
  }
  context.putImageData(image, 0, 0);
}

/**
 * Between the centres of which cells each pixel lies, and how near to the second; constant past the outer ones.
 *
 * @param {number} pixels of the canvas
 * @param {number} size of the picture
 * @param {number} from where the map begins in the picture
 * @param {number} to where it ends
 * @param {number} cells
 * @returns {([number, number, number] | null)[]} null outside of the map
 */
function weights(pixels, size, from, to, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const place = ((pixel + 0.5) * size) / pixels;
    if (place < from || place >= to) return null;
    const cell = Math.min(Math.max(((place - from) / (to - from)) * cells - 0.5, 0), cells - 1);
    const low = Math.floor(cell);
    return [low, Math.min(low + 1, cells - 1), cell - low];
  });
}

/**
 * @param {number[][]} map
 * @param {[number, number, number]} row
 * @param {[number, number, number]} column
 */
function interpolated(map, [top, bottom, down], [left, right, across]) {
  const above = map[top][left] * (1 - across) + map[top][right] * across;
  const below = map[bottom][left] * (1 - across) + map[bottom][right] * across;
  return above * (1 - down) + below * down;
}

/** Where a map is strongest, in words. @param {Explanation} explained */
export function strongest({ map }) {
  let [best, row, column] = [0, 0, 0];
  map.forEach((values, y) =>
    values.forEach((value, x) => {
      if (value > best) [best, row, column] = [value, y, x];
    }),
  );
  if (best === 0) return "nowhere: nothing speaks for it";
  const vertical = ["at the top", "in the middle", "at the bottom"][third(row, map.length)];
  const horizontal = [" on the left", "", " on the right"][third(column, map[0].length)];
  return `strongest ${vertical}${horizontal}`;
}

/** @param {number} cell @param {number} cells */
function third(cell, cells) {
  return Math.min(2, Math.floor(((cell + 0.5) / cells) * 3));
}

/** @param {HTMLCanvasElement} canvas */
function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}
