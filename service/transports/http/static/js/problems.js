/** What went wrong, shown. */

import { Problem, Unreachable } from "./api.js";
import { el } from "./dom.js";
import { icon } from "./icons.js";

/**
 * @import { ProblemDetails } from "./types.js"
 */

/** The code of what the page itself noticed. */
export const UNREACHABLE = "unreachable";

/** @param {ProblemDetails} details @returns {HTMLElement} */
export function problemBox(details) {
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    icon("cross"),
    el(
      "div",
      {},
      el("p", { class: "notice-title" }, details.title),
      el("p", {}, details.detail),
      el(
        "p",
        { class: "small" },
        el("code", {}, details.code),
        details.request_id && " · request ",
        details.request_id && el("code", {}, details.request_id),
      ),
    ),
  );
}

/**
 * An error as people are shown it. A lost connection has the banner, so its box is short.
 *
 * @param {unknown} error
 * @returns {HTMLElement}
 */
export function errorBox(error) {
  return problemBox(detailsOf(error));
}

/** @param {unknown} error @returns {ProblemDetails} */
export function detailsOf(error) {
  if (error instanceof Problem) return error.details;
  if (error instanceof Unreachable) {
    return { title: "The server cannot be reached", detail: "Nothing was answered. Try again once it is back.", code: UNREACHABLE, status: 0 };
  }
  console.error(error);
  return { title: "The page failed", detail: String(error), code: "page", status: 0 };
}

/**
 * Something to know or to beware of.
 *
 * @param {"info" | "warn" | "good"} kind
 * @param {string} title
 * @param {...import("./dom.js").Child} more
 */
export function notice(kind, title, ...more) {
  const symbol = { info: null, warn: icon("warning"), good: icon("check") }[kind];
  return el("div", { class: `notice ${kind}` }, symbol, el("div", {}, el("p", { class: "notice-title" }, title), ...more));
}
