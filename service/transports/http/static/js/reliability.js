/** The reliability diagram: how often answers of a probability are right. */

import { el, svg } from "./dom.js";
import { count, percent } from "./format.js";

const SIDE = 200; // of the plot, in units of the drawing
const LEFT = 46;
const BOTTOM = 40;
const TOP = 8;
const LARGEST = 9; // radius of the bin with the most examples
const SMALLEST = 3;

/**
 * @param {[number, number, number][]} bins confidence, accuracy, examples
 * @returns {HTMLElement}
 */
export function reliabilityDiagram(bins) {
  const most = Math.max(...bins.map(([, , examples]) => examples));
  const x = (/** @type {number} */ share) => LEFT + share * SIDE;
  const y = (/** @type {number} */ share) => TOP + (1 - share) * SIDE;
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  return el(
    "figure",
    { class: "reliability" },
    svg(
      "svg",
      {
        viewBox: `0 0 ${LEFT + SIDE + 14} ${TOP + SIDE + BOTTOM}`,
        role: "img",
        "aria-label": `Reliability diagram of ${count(bins.length, "bin")}; the table below has the same figures`,
      },
      ...ticks.flatMap((tick) => [
        svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: x(0) - 6, y: y(tick) + 4, "text-anchor": "end" }, tick * 100),
        svg("text", { class: "tick", x: x(tick), y: y(0) + 16, "text-anchor": "middle" }, tick * 100),
      ]),
      svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
      svg("polyline", { class: "measured", points: bins.map(([confidence, accuracy]) => `${x(confidence)},${y(accuracy)}`).join(" ") }),
      ...bins.map(([confidence, accuracy, examples]) =>
        svg("circle", { class: "bin", cx: x(confidence), cy: y(accuracy), r: Math.max(SMALLEST, LARGEST * Math.sqrt(examples / most)) }),
      ),
      svg("text", { class: "axis", x: x(0.5), y: TOP + SIDE + 34, "text-anchor": "middle" }, "probability given, %"),
      svg("text", { class: "axis", x: 12, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 12 ${y(0.5)})` }, "right, %"),
    ),
    el("figcaption", { class: "small soft" }, "On the dashed line probabilities mean what they say. Larger dots hold more examples."),
    el(
      "details",
      { class: "small" },
      el("summary", {}, "As a table"),
      el(
        "table",
        { class: "numbers" },
        el("thead", {}, el("tr", {}, ...["Probability", "Right", "Examples"].map((name) => el("th", { scope: "col" }, name)))),
        el(
          "tbody",
          {},
          ...bins.map(([confidence, accuracy, examples]) =>
            el("tr", {}, el("td", {}, percent(confidence)), el("td", {}, percent(accuracy)), el("td", {}, examples)),
          ),
        ),
      ),
    ),
  );
}
