/** The camera: a live preview and a button to snap, once or as long as it is held. */

import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { fileOf } from "./ink.js";
import { notice } from "./problems.js";

const SIDE = 640; // pixels of a snapped image, at most
const BURST = 200; // milliseconds between images while the button is held

/** @type {Record<string, string>} */
const REASONS = {
  NotAllowedError: "This page may not use it: allow the camera in the browser's settings for this site.",
  NotFoundError: "This device has none, or it is unplugged.",
  NotReadableError: "Another program is using it, or it does not answer.",
};

export class Camera {
  #video = el("video", { class: "preview", muted: true, playsinline: true, "aria-label": "What the camera sees" });
  #message = el("div", {});
  #snap;
  #turn;
  /** @type {MediaStream | null} */
  #stream = null;
  #starts = 0;
  #facing = "environment";
  #taken = 0;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #timer;
  #onImage;

  /**
   * @param {(file: File) => void} onImage
   * @param {boolean} [burst] whether holding the button takes one image after the other
   */
  constructor(onImage, burst = false) {
    this.#onImage = onImage;
    this.#snap = el("button", { type: "button", class: "button primary" }, icon("camera"), burst ? "Snap (hold for many)" : "Snap");
    this.#turn = el("button", { type: "button", class: "button", hidden: true, onclick: () => this.#turnAround() }, icon("turn"), "Other camera");
    if (burst) this.#snapWhileHeld();
    else this.#snap.addEventListener("click", () => this.#take());
    this.element = el("div", { class: "camera" }, this.#message, this.#video, el("div", { class: "row" }, this.#snap, this.#turn));
  }

  /** Ask for the camera and show what it sees. */
  async start() {
    this.stop();
    const start = (this.#starts += 1);
    this.#video.hidden = this.#snap.hidden = true;
    fill(this.#message, el("p", { class: "soft" }, "Waiting for the camera …"));
    try {
      if (!navigator.mediaDevices) throw new DOMException("", "InsecureError");
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: this.#facing, width: { ideal: 1280 } } });
      if (start !== this.#starts) {
        for (const track of stream.getTracks()) track.stop(); // closed again while the browser was asking
        return;
      }
      this.#stream = this.#video.srcObject = stream;
      this.#video.muted = true;
      await this.#video.play();
      fill(this.#message);
      this.#video.hidden = this.#snap.hidden = false;
      const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
      this.#turn.hidden = cameras.length < 2;
    } catch (error) {
      if (start !== this.#starts) return;
      const name = error instanceof DOMException ? error.name : "";
      const why = REASONS[name] ?? "The browser gives it only to pages from localhost or over HTTPS.";
      fill(this.#message, notice("info", "There is no camera here.", el("p", {}, why)));
    }
  }

  /** Let go of the camera. */
  stop() {
    this.#starts += 1;
    clearInterval(this.#timer);
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = this.#video.srcObject = null;
  }

  #turnAround() {
    this.#facing = this.#facing === "environment" ? "user" : "environment";
    void this.start();
  }

  #snapWhileHeld() {
    const begin = () => {
      clearInterval(this.#timer);
      void this.#take();
      this.#timer = setInterval(() => this.#take(), BURST);
    };
    const end = () => clearInterval(this.#timer);
    this.#snap.addEventListener("pointerdown", begin);
    this.#snap.addEventListener("keydown", (event) => {
      if ((event.key === " " || event.key === "Enter") && !event.repeat) begin();
    });
    for (const over of ["pointerup", "pointerleave", "pointercancel", "keyup", "blur"]) this.#snap.addEventListener(over, end);
  }

  /** The middle square, which is what the preview shows. */
  async #take() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    if (!this.#stream || !width) return;
    const cut = Math.min(width, height);
    const canvas = el("canvas");
    canvas.width = canvas.height = Math.min(cut, SIDE);
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.drawImage(this.#video, (width - cut) / 2, (height - cut) / 2, cut, cut, 0, 0, canvas.width, canvas.height);
    this.#taken += 1;
    this.#onImage(await fileOf(canvas, `camera-${this.#taken}.jpg`, "image/jpeg"));
  }
}
