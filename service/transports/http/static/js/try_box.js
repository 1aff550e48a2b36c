/**
 * Trying a head where it was taught: the answer, and the examples that are most like the image.
 *
 * @import { Outcome } from "./ask.js"
 */

import { Answer } from "./answer.js";
import * as api from "./api.js";
import { ask } from "./ask.js";
import { el } from "./dom.js";
import { takeDrops } from "./files.js";
import { intake } from "./intake.js";
import { remembered } from "./thumbnails.js";

/** @param {string} head @returns {HTMLElement} */
export function createTryBox(head) {
  let asked = 0;
  const answer = new Answer((outcome) => nearest(head, outcome));

  /** @param {File[]} files */
  async function classify(files) {
    const now = (asked += 1);
    await ask(head, files, (outcomes) => {
      if (now === asked) answer.show(outcomes);
    });
  }

  const box = el(
    "section",
    { class: "panel try-box" },
    el("h2", {}, "3. Try it at once"),
    el("p", { class: "soft" }, "Drop an image here, or:"),
    intake("something to classify", classify, { many: false }),
    answer.element,
  );
  takeDrops(box, classify);
  return box;
}

/** @param {string} head @param {Outcome} outcome */
async function nearest(head, outcome) {
  const found = await api.neighbors(head, outcome.file).catch(() => []); // the answer stands without them
  if (!found.length) return null;
  return el(
    "div",
    {},
    el("h3", {}, "Most like it among the examples"),
    el(
      "ul",
      { class: "neighbours" },
      ...found.map(({ id, label, distance }) =>
        el("li", {}, remembered(head, id), el("strong", {}, label), el("span", { class: "small soft" }, ` at ${distance.toFixed(2)}`)),
      ),
    ),
  );
}
