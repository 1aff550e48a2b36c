/** Dialogs: one to confirm, one around whatever. */

import { el } from "./dom.js";
import { icon } from "./icons.js";

/**
 * Ask before something is lost.
 *
 * @param {string} question
 * @param {string} detail
 * @param {string} action what the button says
 * @returns {Promise<boolean>}
 */
export function confirm(question, detail, action) {
  return new Promise((resolve) => {
    const dialog = el(
      "dialog",
      { class: "dialog", onclose: () => finish() },
      el("h2", {}, question),
      el("p", {}, detail),
      el(
        "div",
        { class: "row end" },
        el("button", { type: "button", class: "button", autofocus: true, onclick: () => dialog.close() }, "Keep"),
        el("button", { type: "button", class: "button danger", onclick: () => dialog.close("yes") }, action),
      ),
    );
    const finish = () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    };
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * A dialog around an element, until it is closed.
 *
 * @param {string} title
 * @param {HTMLElement} content
 * @param {() => void} onClose
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, content, onClose) {
  const dialog = el(
    "dialog",
    { class: "dialog", "aria-label": title },
    el(
      "div",
      { class: "dialog-head" },
      el("h2", {}, title),
      el("button", { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() }, icon("cross")),
    ),
    content,
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
