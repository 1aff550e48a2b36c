/** Images to begin with: characters, drawn by hand once, and one thing that no bundled model knows. */

import { pictureOfInk } from "./ink.js";

/**
 * @import { Stroke } from "./ink.js"
 */

const SIDE = 100;

/** @type {[string, Stroke[]][]} */
const DRAWN = [
  ["seven", [[[30, 12], [70, 12], [60, 42], [44, 90]], [[34, 50], [72, 46]]]],
  ["two", [[[26, 30], [36, 16], [56, 14], [70, 26], [66, 44], [46, 64], [24, 84], [24, 85], [78, 84]]]],
  ["nine", [[[68, 34], [54, 44], [36, 38], [32, 22], [48, 10], [66, 18], [68, 34], [64, 66], [48, 90]]]],
  ["capital A", [[[16, 88], [50, 12], [50, 12], [84, 88]], [[30, 60], [70, 60]]]],
  ["small g", [[[68, 34], [54, 26], [36, 30], [30, 46], [38, 60], [56, 60], [68, 48], [68, 26], [68, 76], [56, 90], [34, 86]]]],
  ["star", [[[50, 8], [50, 8], [74, 88], [74, 88], [10, 36], [10, 36], [90, 36], [90, 36], [26, 88], [26, 88], [50, 8]]]],
];

/** @returns {Promise<File[]>} named for what they show */
export function samples() {
  return Promise.all(DRAWN.map(([name, strokes]) => pictureOfInk(strokes, SIDE, `${name}.png`)));
}
