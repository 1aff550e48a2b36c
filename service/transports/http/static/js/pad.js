/** A pad to draw on: with mouse, finger or pen, or with the keyboard. */

import { announce, el } from "./dom.js";
import { icon } from "./icons.js";
import { draw, pictureOfInk } from "./ink.js";

/**
 * @import { Point, Stroke } from "./ink.js"
 */

const SIDE = 480; // pixels of the canvas, however large it is shown
const PEN = SIDE * 0.055;
const STEP = SIDE / 24; // of the keyboard's pen
const NEAR = 2; // a point closer to the last one than this adds nothing

const MOVES = /** @type {Record<string, Point>} */ ({
  ArrowLeft: [-STEP, 0],
  ArrowRight: [STEP, 0],
  ArrowUp: [0, -STEP],
  ArrowDown: [0, STEP],
});

export class Pad {
  #canvas = el("canvas", {
    class: "pad",
    width: SIDE,
    height: SIDE,
    tabindex: 0,
    role: "application",
    "aria-label":
      "Drawing pad. Draw with a pointer; or move the pen with the arrow keys, and press Space to put it down or lift it.",
  });
  /** @type {Stroke[]} */
  #strokes = [];
  #drawing = false;
  /** @type {Point} */
  #pen = [SIDE / 2, SIDE / 2];
  #keyboard = false;
  #onChange;

  /** @param {() => void} onChange a line was finished, or taken back */
  constructor(onChange) {
    this.#onChange = onChange;
    this.element = el(
      "div",
      { class: "pad-frame" },
      this.#canvas,
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", class: "button", onclick: () => this.#change(this.#strokes.slice(0, -1)) }, icon("undo"), "Undo"),
        el("button", { type: "button", class: "button", onclick: () => this.#change([]) }, icon("cross"), "Clear"),
      ),
    );
    this.#canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(end, () => this.#up());
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("blur", () => {
      this.#keyboard = false;
      this.#up();
      this.#render();
    });
    this.#render();
  }

  get empty() {
    return this.#strokes.length === 0;
  }

  /** Begin anew, without telling anybody. */
  clear() {
    this.#strokes = [];
    this.#render();
  }

  /** @param {string} name of the file */
  picture(name) {
    return pictureOfInk(this.#strokes, SIDE, name);
  }

  /** @param {Stroke[]} strokes */
  #change(strokes) {
    this.#strokes = strokes;
    this.#render();
    this.#onChange();
  }

  /** @param {PointerEvent} event @returns {Point} */
  #place(event) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [((event.clientX - left) / width) * SIDE, ((event.clientY - top) / height) * SIDE];
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#keyboard = false;
    this.#drawing = true;
    this.#strokes.push([this.#place(event)]);
    this.#render();
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (!this.#drawing || this.#keyboard) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length ? all : [event]) this.#extend(this.#place(each));
  }

  /** @param {Point} point */
  #extend(point) {
    const stroke = this.#strokes[this.#strokes.length - 1];
    const [x, y] = stroke[stroke.length - 1];
    if (Math.hypot(point[0] - x, point[1] - y) < NEAR) return;
    stroke.push(point);
    this.#render();
  }

  #up() {
    if (!this.#drawing) return;
    this.#drawing = false;
    this.#onChange();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const move = MOVES[event.key];
    if (event.key === " ") {
      event.preventDefault();
      this.#keyboard = true;
      if (this.#drawing) {
        this.#up();
      } else {
        this.#drawing = true;
        this.#strokes.push([[...this.#pen]]);
      }
      announce(this.#drawing ? "Pen down" : "Pen up");
    } else if (move) {
      event.preventDefault();
      this.#keyboard = true;
      const [x, y] = this.#pen;
      this.#pen = [Math.min(Math.max(x + move[0], 0), SIDE), Math.min(Math.max(y + move[1], 0), SIDE)];
      if (this.#drawing) this.#extend(this.#pen);
    } else {
      return;
    }
    this.#render();
  }

  #render() {
    const context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    context.fillStyle = "white";
    context.fillRect(0, 0, SIDE, SIDE);
    context.strokeStyle = "black";
    draw(context, this.#strokes, PEN);
    if (!this.#keyboard) return;
    context.strokeStyle = this.#drawing ? "#0b5f5b" : "#777";
    context.lineWidth = 3;
    context.beginPath();
    context.arc(...this.#pen, PEN, 0, Math.PI * 2);
    context.stroke();
  }
}
