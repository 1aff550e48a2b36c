/** Small charts of the last minutes: lines over time, with axes and units. */

import { el, fill, svg } from "./dom.js";
import { significant } from "./format.js";

const WIDTH = 340;
const HEIGHT = 170;
const LEFT = 44;
const RIGHT = 12;
const TOP = 26;
const BOTTOM = 26;
const SERIES = 6; // colours

/**
 * @typedef {object} Line
 * @property {string} name for the legend; empty: it needs none
 * @property {([number, number] | null)[]} points seconds ago and value; null for a gap
 */

export class Chart {
  #now = el("p", { class: "chart-now" });
  #plot = el("div", {});
  #legend = el("ul", { class: "chart-legend small" });
  #unit;
  #window;
  #title;
  #least;

  /**
   * @param {string} title
   * @param {string} unit
   * @param {number} window seconds
   * @param {string} about
   * @param {number} least that the axis reaches
   */
  constructor(title, unit, window, about, least) {
    this.#title = title;
    this.#least = least;
    this.#unit = unit;
    this.#window = window;
    this.element = el(
      "figure",
      { class: "panel chart" },
      el("figcaption", {}, el("h2", {}, title), el("p", { class: "small soft" }, about)),
      this.#now,
      this.#plot,
      this.#legend,
    );
  }

  /** @param {Line[]} lines @param {string} now the latest value, in words */
  show(lines, now) {
    this.#now.textContent = now;
    const values = lines.flatMap(({ points }) => points.flatMap((point) => (point ? [point[1]] : [])));
    const top = nice(Math.max(this.#least, ...values));
    const x = (/** @type {number} */ ago) => LEFT + (1 - ago / this.#window) * (WIDTH - LEFT - RIGHT);
    const y = (/** @type {number} */ value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    fill(
      this.#plot,
      svg(
        "svg",
        { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${this.#title} of the last ${this.#window / 60} minutes, now ${now}` },
        ...[0, 0.5, 1].flatMap((share) => [
          svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(top * share), y2: y(top * share) }),
          svg("text", { class: "tick", x: LEFT - 6, y: y(top * share) + 4, "text-anchor": "end" }, significant(top * share)),
        ]),
        svg("text", { class: "tick", x: LEFT, y: 12, "text-anchor": "start" }, this.#unit),
        ...[this.#window, this.#window / 2, 0].map((ago) =>
          svg("text", { class: "tick", x: x(ago), y: HEIGHT - 8, "text-anchor": ago === 0 ? "end" : ago === this.#window ? "start" : "middle" }, ago ? `−${ago} s` : "now"),
        ),
        ...lines.flatMap(({ points }, index) =>
          segments(points).map((segment) =>
            segment.length > 1
              ? svg("polyline", { class: `line series-${index % SERIES}`, points: segment.map(([ago, value]) => `${x(ago).toFixed(1)},${y(value).toFixed(1)}`).join(" ") })
              : svg("circle", { class: `dot series-${index % SERIES}`, cx: x(segment[0][0]), cy: y(segment[0][1]), r: 2.5 }),
          ),
        ),
      ),
    );
    fill(this.#legend, ...lines.map(({ name }, index) => name && el("li", { class: `series-${index % SERIES}` }, name)));
  }
}

/** The runs without gaps. @param {Line["points"]} points */
function segments(points) {
  /** @type {[number, number][][]} */
  const found = [];
  let open = false;
  for (const point of points) {
    if (point && open) found[found.length - 1].push(point);
    else if (point) found.push([point]);
    open = point !== null;
  }
  return found;
}

/** The next number that makes a good axis: 1, 2 or 5 times a power of ten. @param {number} value more than 0 */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * (/** @type {number} */ ([1, 2, 5, 10].find((step) => step * power >= value * 0.999)));
}
