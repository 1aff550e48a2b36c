/** Small pictures of examples that were sent from this page; the server gives none back. */

import { el } from "./dom.js";

const SIDE = 72; // pixels

/** @type {Map<string, HTMLCanvasElement>} */
const known = new Map();
const KEPT = 2000;

/** Draw one and remember it. @param {string} head @param {string} id @param {Blob} file @returns {HTMLCanvasElement} */
export function thumbnail(head, id, file) {
  const canvas = el("canvas", { class: "thumb", width: SIDE, height: SIDE, "aria-hidden": "true" });
  createImageBitmap(file).then(
    (bitmap) => {
      const cut = Math.min(bitmap.width, bitmap.height);
      const context = canvas.getContext("2d");
      context?.drawImage(bitmap, (bitmap.width - cut) / 2, (bitmap.height - cut) / 2, cut, cut, 0, 0, SIDE, SIDE);
      bitmap.close();
    },
    () => canvas.classList.add("blank"), // the server knows more formats than browsers do
  );
  known.set(key(head, id), canvas);
  for (const oldest of known.keys()) {
    if (known.size <= KEPT) break;
    known.delete(oldest);
  }
  return canvas;
}

/** Another copy of a remembered one. @param {string} head @param {string} id @returns {HTMLCanvasElement | null} */
export function remembered(head, id) {
  const canvas = known.get(key(head, id));
  if (!canvas) return null;
  const copy = el("canvas", { class: "thumb", width: SIDE, height: SIDE, "aria-hidden": "true" });
  copy.getContext("2d")?.drawImage(canvas, 0, 0);
  return copy;
}

/** @param {string} head @param {string} id */
function key(head, id) {
  return `${head}/${id}`;
}
