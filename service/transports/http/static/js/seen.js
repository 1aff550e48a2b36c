/**
 * A picture with the map of a class over it.
 *
 * @import { Outcome } from "./ask.js"
 * @import { Explanation } from "./types.js"
 */

import { pictureOf } from "./ask.js";
import { el, fill, uniqueId } from "./dom.js";
import { drawMap, drawPicture, strongest } from "./overlay.js";

export class Seen {
  #picture = el("canvas", { class: "picture" });
  #map = el("canvas", { class: "map" });
  #stack = el("div", { class: "stack", role: "img" }, this.#picture, this.#map);
  #caption = el("figcaption", { class: "small" });
  #switch = el("input", { type: "checkbox", role: "switch", checked: true, onchange: () => this.#apply() });
  #opacity;
  #controls;
  /** @type {Outcome | null} */
  #outcome = null;
  /** @type {ImageBitmap | null} */
  #bitmap = null;

  constructor() {
    const id = uniqueId("opacity");
    this.#opacity = el("input", { type: "range", id, min: 0, max: 100, value: 75, oninput: () => this.#apply() });
    this.#controls = el(
      "div",
      { class: "map-controls" },
      el("label", { class: "switch" }, this.#switch, el("span", {}, "Map")),
      el("label", { class: "slider", for: id }, el("span", {}, "Opacity"), this.#opacity),
      el(
        "p",
        { class: "legend small" },
        "little",
        el("span", { class: "viridis", "aria-hidden": "true" }),
        "much speaks for it",
      ),
    );
    this.element = el("figure", { class: "seen" }, this.#stack, this.#caption, this.#controls);
    this.#apply();
  }

  /** Show a picture, and the map that came with its answer. @param {Outcome} outcome */
  async show(outcome) {
    this.#outcome = outcome;
    const bitmap = await pictureOf(outcome).catch(() => null);
    if (this.#outcome !== outcome) {
      bitmap?.close();
      return;
    }
    this.#bitmap?.close();
    this.#bitmap = bitmap;
    this.element.classList.toggle("blank", bitmap === null);
    this.explain(outcome.prediction?.explanation ?? null);
  }

  /** Lay the map of a class over the picture. @param {Explanation | null} explained null: none */
  explain(explained) {
    const outcome = this.#outcome;
    if (!outcome) return;
    if (this.#bitmap) drawPicture(this.#picture, this.#bitmap, explained);
    this.#controls.hidden = this.#map.hidden = !explained;
    const name = outcome.name || "The image";
    if (explained) {
      drawMap(this.#map, explained);
      this.#stack.setAttribute("aria-label", `${name}, with the map of ${explained.label}: ${strongest(explained)}`);
      fill(this.#caption, "What speaks for ", el("strong", {}, explained.label));
    } else {
      this.#stack.setAttribute("aria-label", this.#bitmap ? name : `${name}: a picture that cannot be shown here`);
      fill(this.#caption, outcome.mapless ? `No map: ${outcome.mapless}` : name);
    }
  }

  #apply() {
    this.#map.style.opacity = this.#switch.checked ? String(this.#opacity.valueAsNumber / 100) : "0";
    this.#opacity.disabled = !this.#switch.checked;
  }
}
