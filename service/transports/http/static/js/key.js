/** The key that the server asks for: kept as long as the tab is open, and asked for once, however many calls want it. */

import { openDialog } from "./dialog.js";
import { el, uniqueId } from "./dom.js";

const STORED = "fovea-key";

/** @type {string | null} */
let given = read();
/** @type {Promise<boolean> | null} */
let asking = null;
let declined = false;

/** The key, if there is one. */
export const key = () => given;

/**
 * Ask for another key than the one that was refused.
 *
 * @param {string | null} refused
 * @param {boolean} wanted by a person just now, who is asked again even after having closed the dialog
 * @returns {Promise<boolean>} whether there is one now
 */
export function askForKey(refused, wanted) {
  if (given !== refused) return Promise.resolve(true); // another call has had the same answer, and been given one
  if (declined && !wanted) return Promise.resolve(false);
  asking ??= ask(refused !== null).finally(() => {
    asking = null;
  });
  return asking;
}

/** @param {boolean} again @returns {Promise<boolean>} */
function ask(again) {
  return new Promise((resolve) => {
    const id = uniqueId("key");
    const input = el("input", {
      id,
      type: "password",
      required: true,
      pattern: "\\s*fovea_[0-9a-f]{12}_[A-Za-z0-9_\\-]{43}\\s*",
      title: "fovea_, 12 digits and letters, _, and 43 more characters",
      autocomplete: "off",
      spellcheck: "false",
      autofocus: true,
    });
    const form = el(
      "form",
      { class: "stacked" },
      el("p", {}, again ? "The server does not take this key." : "This server answers those who have a key."),
      el("div", { class: "field" }, el("label", { for: id, class: "label" }, "Key"), input),
      el("p", { class: "small soft" }, "It is kept until this tab is closed."),
      el("button", { type: "submit", class: "button primary" }, "Go on"),
    );
    let entered = false;
    const dialog = openDialog("A key is needed", form, () => {
      declined = !entered;
      resolve(entered);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      entered = true;
      keep(input.value.trim());
      dialog.close();
    });
  });
}

/** @param {string} key */
function keep(key) {
  given = key;
  try {
    sessionStorage.setItem(STORED, key);
  } catch {
    // It holds until the page is left.
  }
}

function read() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null; // a browser that keeps nothing
  }
}
