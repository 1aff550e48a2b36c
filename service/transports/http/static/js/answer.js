/**
 * What a model answered about images: one in full and, of several, all of them to choose from.
 *
 * @import { Outcome } from "./ask.js"
 */

import { explain, pictureOf } from "./ask.js";
import { announce, el, fill } from "./dom.js";
import { percent } from "./format.js";
import { icon } from "./icons.js";
import { drawPicture } from "./overlay.js";
import { abstention, classBars, inWords, predictionSet, timingBar } from "./parts.js";
import { errorBox, problemBox } from "./problems.js";
import { Seen } from "./seen.js";

const TILE = 240; // pixels

export class Answer {
  #grid = el("ul", { class: "tiles", hidden: true });
  #seen = new Seen();
  #text = el("div", { class: "answer-text" });
  #detail = el("div", { class: "answer", hidden: true }, this.#seen.element, this.#text);
  #extra;
  /** @type {Outcome[]} */
  #outcomes = [];
  #chosen = 0;

  /**
   * @param {(outcome: Outcome) => Promise<Node | null>} [extra] more about an answered image, shown below the rest
   */
  constructor(extra) {
    this.#extra = extra;
    this.element = el("div", { class: "answers" }, this.#grid, this.#detail);
  }

  /** Show answers; with those of more images of the same request, again. @param {Outcome[]} outcomes */
  show(outcomes) {
    const more = outcomes.length > this.#outcomes.length && this.#outcomes.every((known, at) => known === outcomes[at]);
    const before = more ? this.#outcomes.length : 0;
    this.#outcomes = [...outcomes];
    if (before === 0) {
      this.#chosen = 0;
      this.#grid.replaceChildren();
      this.#showDetail(outcomes[0]);
    }
    this.#grid.hidden = outcomes.length < 2;
    if (outcomes.length > 1) {
      for (let index = before; index < outcomes.length; index += 1) this.#grid.append(this.#tile(index));
    }
    announce(outcomes.length > 1 ? `${outcomes.length} images are answered.` : spoken(outcomes[0]));
  }

  /** Forget what is shown. */
  clear() {
    this.#outcomes = [];
    this.#grid.replaceChildren();
    this.#grid.hidden = this.#detail.hidden = true;
  }

  /** @param {number} index */
  #tile(index) {
    const outcome = this.#outcomes[index];
    const canvas = el("canvas", { "aria-hidden": "true" });
    pictureOf(outcome).then(
      (bitmap) => {
        drawPicture(canvas, bitmap, null, TILE);
        bitmap.close();
      },
      () => canvas.replaceWith(el("span", { class: "tile-blank" }, icon("cross"))),
    );
    const best = outcome.prediction?.classes[0];
    const button = el(
      "button",
      { type: "button", class: "tile", "aria-pressed": String(index === this.#chosen) },
      canvas,
      el("span", { class: "tile-label" }, best ? best.label : (outcome.problem?.title ?? "")),
      best && el("span", { class: "small" }, percent(best.probability)),
      outcome.prediction?.abstained && el("span", { class: "small tile-doubt" }, icon("warning"), " do not trust"),
      el("span", { class: "tile-name small soft" }, outcome.name),
    );
    button.addEventListener("click", () => {
      this.#chosen = index;
      for (const each of this.#grid.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
      this.#showDetail(outcome);
      announce(spoken(outcome));
    });
    return el("li", {}, button);
  }

  /** @param {Outcome} outcome */
  #showDetail(outcome) {
    const { prediction, problem } = outcome;
    this.#detail.hidden = false;
    this.#detail.classList.toggle("doubtful", prediction?.abstained ?? false);
    this.#detail.classList.toggle("refused", !prediction);
    void this.#seen.show(outcome);
    if (!prediction) {
      fill(this.#text, el("p", { class: "soft" }, outcome.name), problem && problemBox(problem));
      return;
    }
    const [best] = prediction.classes;
    const choose = prediction.explanation ? this.#chooser(outcome) : null;
    const extra = el("div", {});
    fill(
      this.#text,
      abstention(prediction),
      el(
        "p",
        { class: "verdict" },
        el("span", { class: "verdict-label" }, best.label),
        el("span", { class: "verdict-probability" }, percent(best.probability)),
      ),
      el("h3", {}, "Classes"),
      classBars(prediction, choose),
      choose && el("p", { class: "small soft hint" }, "Choose a class to see what speaks for it."),
      el("h3", {}, "Prediction set"),
      predictionSet(prediction),
      extra,
      el("h3", {}, "Time"),
      timingBar(prediction, outcome.roundTrip),
      el("p", { class: "small soft" }, `Answered by ${outcome.model}, version ${outcome.version}.`),
    );
    void this.#extra?.(outcome).then((more) => more && fill(extra, more));
  }

  /** @param {Outcome} outcome */
  #chooser(outcome) {
    let last = 0;
    const bad = el("div", {});
    /** @param {string} label @param {HTMLButtonElement} button */
    return async (label, button) => {
      const now = (last += 1);
      button.closest("ol")?.after(bad);
      bad.replaceChildren();
      try {
        const explained = await explain(outcome, label);
        if (now !== last || !button.isConnected) return;
        for (const each of this.#text.querySelectorAll("button.bar")) each.setAttribute("aria-pressed", String(each === button));
        this.#seen.explain(explained);
        announce(`The map of ${label} is shown.`);
      } catch (error) {
        bad.replaceChildren(errorBox(error));
      }
    };
  }
}

/** @param {Outcome} outcome */
function spoken(outcome) {
  return outcome.prediction ? inWords(outcome.prediction) : `${outcome.problem?.title}: ${outcome.problem?.detail}`;
}
