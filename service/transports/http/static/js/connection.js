/** The banner while the server cannot be reached. It asks until there is an answer, then tells the views. */

import { alive, reach } from "./api.js";
import { fill } from "./dom.js";
import { icon } from "./icons.js";

const FIRST_WAIT = 1000; // milliseconds
const LONGEST_WAIT = 5000;

/**
 * @param {HTMLElement} banner
 * @param {() => void} onBack the server is there again
 */
export function watchConnection(banner, onBack) {
  let lost = false;

  /** @param {number} wait */
  function askAgain(wait) {
    setTimeout(() => {
      if (lost) alive().catch(() => askAgain(Math.min(wait * 1.5, LONGEST_WAIT)));
    }, wait);
  }

  reach.addEventListener("lost", () => {
    if (lost) return;
    lost = true;
    fill(banner, icon("warning"), "The server cannot be reached. This page goes on by itself once it is back.");
    banner.hidden = false;
    askAgain(FIRST_WAIT);
  });
  reach.addEventListener("found", () => {
    if (!lost) return;
    lost = false;
    banner.hidden = true;
    onBack();
  });
}
