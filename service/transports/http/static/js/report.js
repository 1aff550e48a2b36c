/**
 * What a fit came to: figures, warnings, classes, confusions, reliability.
 *
 * @import { Report } from "./types.js"
 */

import { el } from "./dom.js";
import { count, percent, round, sentence } from "./format.js";
import { notice } from "./problems.js";
import { reliabilityDiagram } from "./reliability.js";

const MOST_COLUMNS = 60; // of a confusion matrix; a larger one nobody reads

/**
 * @param {Report} report
 * @param {{ coverage: number | null }} promise of its prediction sets; null: it gives none
 * @returns {HTMLElement}
 */
export function reportView(report, { coverage }) {
  const labels = report.classes.map(({ label }) => label);
  return el(
    "div",
    { class: "report" },
    ...report.warnings.map((warning) => notice("warn", sentence(warning))),
    figures([
      ["Accuracy", report.accuracy === null ? "unknown" : percent(report.accuracy), validated(report)],
      ["Calibration error", report.ece === null ? "unknown" : percent(report.ece), "how far probabilities are off, on average (ECE)"],
      ["Prediction sets", coverage === null ? "none" : round(coverage), coverage === null ? "too few examples for them" : "hold the true class that often"],
      ["Examples", String(report.examples), `in ${count(labels.length, "class", "classes")}`],
    ]),
    el(
      "div",
      { class: "report-parts" },
      el("section", { class: "panel" }, el("h3", {}, "Classes"), classTable(report)),
      report.confusion && labels.length <= MOST_COLUMNS && el("section", { class: "panel" }, el("h3", {}, "Confusions"), confusionTable(report.confusion, labels)),
      report.reliability.length > 0 && el("section", { class: "panel" }, el("h3", {}, "Reliability"), reliabilityDiagram(report.reliability)),
    ),
  );
}

/** Large figures with what they mean. @param {[string, string, string][]} entries name, figure, meaning */
export function figures(entries) {
  return el(
    "dl",
    { class: "figures" },
    ...entries.map(([name, figure, meaning]) =>
      el("div", {}, el("dt", {}, name), el("dd", { class: "figure" }, figure), el("dd", { class: "small soft" }, meaning)),
    ),
  );
}

/** @param {Report} report */
function validated({ accuracy, validated, folds }) {
  if (accuracy === null) return "too few examples to hold any out";
  return `on ${count(validated, "example")} held out${folds ? ` in ${folds} folds` : ""}`;
}

/** @param {Report} report */
function classTable({ classes }) {
  return scrolling(
    "Accuracy of each class",
    el(
      "table",
      { class: "numbers" },
      el("caption", { class: "unseen" }, "Accuracy of each class"),
      el("thead", {}, el("tr", {}, ...["Class", "Examples", "Accuracy"].map((name) => el("th", { scope: "col" }, name)))),
      el(
        "tbody",
        {},
        ...classes.map(({ label, examples, accuracy }) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, label),
            el("td", {}, examples),
            el("td", {}, accuracy === null ? "unknown" : percent(accuracy)),
          ),
        ),
      ),
    ),
  );
}

/** @param {number[][]} confusion `[true][given]` @param {string[]} labels */
function confusionTable(confusion, labels) {
  return scrolling(
    "Confusion matrix",
    el(
      "table",
      { class: "confusion" },
      el("caption", { class: "small soft" }, "Rows: the true class. Columns: the class that was given."),
      el("thead", {}, el("tr", {}, el("td", {}), ...labels.map((label) => el("th", { scope: "col" }, label)))),
      el(
        "tbody",
        {},
        ...confusion.map((row, index) => {
          const sum = row.reduce((before, value) => before + value, 0) || 1;
          return el(
            "tr",
            {},
            el("th", { scope: "row" }, labels[index]),
            ...row.map((value, column) =>
              el("td", { class: column === index ? "right" : "wrong", vars: { "--share": value / sum } }, value || "·"),
            ),
          );
        }),
      ),
    ),
  );
}

/** Something wide, scrolled within the page; the keyboard can scroll it too. @param {string} name @param {HTMLElement} content */
export function scrolling(name, content) {
  return el("div", { class: "scrolling", tabindex: 0, role: "region", "aria-label": name }, content);
}
