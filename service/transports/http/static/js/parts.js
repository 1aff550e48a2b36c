/**
 * The parts of an answer: bars of classes, the prediction set in words, where the time went.
 *
 * @import { Prediction } from "./types.js"
 */

import { el, svg } from "./dom.js";
import { list, milliseconds, percent, round } from "./format.js";
import { notice } from "./problems.js";

const MOST = 20; // labels of a prediction set that are shown

/**
 * The most probable classes; each is a button where a class can be chosen.
 *
 * @param {Prediction} prediction
 * @param {((label: string, button: HTMLButtonElement) => void) | null} onChoose
 * @returns {HTMLElement}
 */
export function classBars(prediction, onChoose) {
  const chosen = prediction.explanation?.label;
  return el(
    "ol",
    { class: "bars" },
    ...prediction.classes.map(({ label, probability }) => {
      const parts = [
        el("span", { class: "bar-label" }, label),
        el("span", { class: "bar-track", "aria-hidden": "true" }, el("span", { class: "bar-fill", vars: { "--share": probability } })),
        el("span", { class: "bar-value" }, percent(probability)),
      ];
      if (!onChoose) return el("li", {}, el("div", { class: "bar" }, ...parts));
      const button = el("button", { type: "button", class: "bar", "aria-pressed": String(label === chosen) }, ...parts);
      button.addEventListener("click", () => onChoose(label, button));
      return el("li", {}, button);
    }),
  );
}

/** What to beware of; null if there is nothing. @param {Prediction} prediction */
export function abstention(prediction) {
  if (!prediction.abstained) return null;
  return notice("warn", "This image is unlike what the model was trained on: do not trust the classes.");
}

/** The prediction set and what it promises. @param {Prediction} prediction @returns {HTMLElement} */
export function predictionSet({ prediction_set: labels, coverage }) {
  if (labels === null || coverage === null) {
    return el("p", { class: "soft" }, "This model gives no prediction sets.");
  }
  const shown = labels.length > MOST ? [...labels.slice(0, MOST), `and ${labels.length - MOST} more`] : labels;
  return el(
    "div",
    { class: "prediction-set" },
    labels.length > 0 && el("ul", { class: "chips" }, ...shown.map((label) => el("li", {}, label))),
    el("p", { class: "soft" }, setInWords(labels.length, coverage)),
  );
}

/** @param {number} size @param {number} coverage */
function setInWords(size, coverage) {
  if (size === 0) return `Empty: no class is likely enough. Sets hold the true class for ${round(coverage)} of images; this may be one of the others.`;
  const what = size === 1 ? "One class is left" : `One of these ${size}`;
  return `${what}: sets like this hold the true class for ${round(coverage)} of images.`;
}

/** An answer in a sentence. @param {Prediction} prediction */
export function inWords(prediction) {
  const { label, probability } = prediction.classes[0];
  const set = prediction.prediction_set;
  return [
    `${label}, ${percent(probability)}.`,
    prediction.abstained && "This image is unlike what the model was trained on: do not trust the classes.",
    set && prediction.coverage !== null && `Prediction set at ${round(prediction.coverage)}: ${set.length ? list(set.slice(0, MOST)) : "empty"}.`,
  ]
    .filter(Boolean)
    .join(" ");
}

/** Where the time went. @param {Prediction} prediction @param {number} roundTrip milliseconds @returns {HTMLElement} */
export function timingBar({ timings_ms: { decode, queue, infer, total } }, roundTrip) {
  const steps = /** @type {[string, number][]} */ ([
    ["decode", decode],
    ["queue", queue],
    ["infer", infer],
    ["other", Math.max(0, total - decode - queue - infer)],
  ]);
  const sum = steps.reduce((before, [, ms]) => before + ms, 0) || 1;
  let from = 0;
  const segments = steps.map(([name, ms]) => {
    const segment = svg("rect", { class: `step-${name}`, x: (from / sum) * 100, width: (ms / sum) * 100, height: 10 });
    from += ms;
    return segment;
  });
  return el(
    "div",
    { class: "timings" },
    svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, ...segments),
    el(
      "ul",
      { class: "steps small" },
      ...steps.map(([name, ms]) => el("li", { class: `step-${name}` }, `${name} `, el("b", {}, milliseconds(ms)))),
    ),
    el("p", { class: "small soft" }, `${milliseconds(total)} in the server, ${milliseconds(roundTrip)} from here and back`),
  );
}
