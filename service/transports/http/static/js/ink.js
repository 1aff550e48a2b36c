/**
 * Drawings as lines of points, and pictures of them: cut out, centred and drawn with one pen, as the characters are that
 * the bundled models know.
 *
 * @typedef {[number, number]} Point
 * @typedef {Point[]} Stroke
 */

const SIDE = 128; // pixels of a picture
const MARGIN = 0.12;
const PEN = 0.1; // of the side
const LEAST = 0.25; // a drawing that is smaller than this share of the pad is not enlarged beyond it

/**
 * Draw lines, rounded.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Stroke[]} strokes
 * @param {number} pen
 */
export function draw(context, strokes, pen) {
  context.lineWidth = pen;
  context.lineCap = context.lineJoin = "round";
  for (const [first, ...rest] of strokes) {
    context.beginPath();
    context.moveTo(...first);
    if (!rest.length) context.lineTo(...first); // a dot
    rest.forEach(([x, y], index) => {
      const next = rest[index + 1];
      if (next) context.quadraticCurveTo(x, y, (x + next[0]) / 2, (y + next[1]) / 2);
      else context.lineTo(x, y);
    });
    context.stroke();
  }
}

/**
 * A picture of a drawing: dark on white, PNG.
 *
 * @param {Stroke[]} strokes at least one
 * @param {number} side of the pad that they are on
 * @param {string} name of the file
 * @returns {Promise<File>}
 */
export async function pictureOfInk(strokes, side, name) {
  const xs = strokes.flat().map(([x]) => x);
  const ys = strokes.flat().map(([, y]) => y);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = (SIDE * (1 - 2 * MARGIN)) / Math.max(right - left, bottom - top, side * LEAST);
  /** @type {Stroke[]} */
  const centred = strokes.map((stroke) =>
    stroke.map(([x, y]) => [(x - (left + right) / 2) * scale + SIDE / 2, (y - (top + bottom) / 2) * scale + SIDE / 2]),
  );
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "white";
  context.fillRect(0, 0, SIDE, SIDE);
  context.strokeStyle = "black";
  draw(context, centred, SIDE * PEN);
  return fileOf(canvas, name, "image/png");
}

/** @param {HTMLCanvasElement} canvas @param {string} name @param {"image/png" | "image/jpeg"} type @returns {Promise<File>} */
export function fileOf(canvas, name, type) {
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(new File([blob], name, { type })) : reject(new Error("no picture"))), type, 0.92),
  );
}
