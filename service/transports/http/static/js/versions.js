/**
 * The versions of a head, and going back to one.
 *
 * @import { HeadCard } from "./types.js"
 */

import { el } from "./dom.js";
import { percent, time } from "./format.js";
import { scrolling } from "./report.js";

/**
 * @param {HeadCard} card
 * @param {(version: string | null) => void} onPin null: the newest, from now on
 * @returns {HTMLElement}
 */
export function versionTable(card, onPin) {
  const columns = ["Version", "Fitted", "Examples", "Classes", "Accuracy", "ECE", "State", "Answers"];
  const rows = [...card.versions].reverse().map((each) => {
    const answers = each.version === card.version;
    const use = el("button", { type: "button", class: "button", "aria-label": `Use version ${each.version}`, onclick: () => onPin(each.version) }, "Use this one");
    return el(
      "tr",
      { class: answers && "current" },
      el("th", { scope: "row" }, each.version),
      el("td", {}, time(each.created)),
      el("td", {}, each.examples),
      el("td", {}, each.labels),
      el("td", {}, each.accuracy === null ? "unknown" : percent(each.accuracy)),
      el("td", {}, each.ece === null ? "unknown" : percent(each.ece)),
      el("td", {}, each.state),
      el("td", {}, answers ? el("strong", {}, card.pinned === each.version ? "yes, pinned" : "yes") : use),
    );
  });
  return el(
    "div",
    {},
    scrolling(
      "Versions",
      el(
        "table",
        { class: "numbers" },
        el("caption", { class: "unseen" }, "Versions"),
        el("thead", {}, el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...rows),
      ),
    ),
    card.pinned !== null &&
      el(
        "p",
        { class: "row" },
        `Version ${card.pinned} answers whatever is fitted next.`,
        el("button", { type: "button", class: "button", onclick: () => onPin(null) }, "Use the newest"),
      ),
  );
}
