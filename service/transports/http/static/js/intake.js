/** Where images come from, in little: files, camera and drawing pad, as buttons. */

import { Camera } from "./camera.js";
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { icon } from "./icons.js";
import { Pad } from "./pad.js";

const ACCEPT = "image/*";

/**
 * A button that chooses files.
 *
 * @param {string} text
 * @param {(files: File[]) => void} onFiles
 * @param {{ multiple?: boolean, accept?: string, symbol?: string, primary?: boolean, label?: string }} [options]
 */
export function chooseButton(text, onFiles, { multiple = true, accept = ACCEPT, symbol = "upload", primary = false, label } = {}) {
  const input = el("input", { type: "file", multiple, accept, hidden: true, "aria-label": label ?? text });
  input.addEventListener("change", () => {
    if (input.files?.length) onFiles([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  const button = el(
    "button",
    { type: "button", class: primary ? "button primary" : "button", "aria-label": label, onclick: () => input.click() },
    icon(symbol),
    text,
  );
  return el("span", { class: "chooser" }, button, input);
}

/**
 * Files, camera, pad: the last two in a dialog.
 *
 * @param {string} what the images are of, for the dialogs' titles
 * @param {(files: File[]) => void} onFiles
 * @param {{ many?: boolean }} [options] whether several are wanted
 * @returns {HTMLElement}
 */
export function intake(what, onFiles, { many = true } = {}) {
  return el(
    "div",
    { class: "row intake" },
    chooseButton("Choose", onFiles, { multiple: many, label: `Choose images of ${what}` }),
    el("button", { type: "button", class: "button", "aria-label": `Camera: ${what}`, onclick: () => camera(what, onFiles, many) }, icon("camera"), "Camera"),
    el("button", { type: "button", class: "button", "aria-label": `Draw ${what}`, onclick: () => pad(what, onFiles, many) }, icon("pen"), "Draw"),
  );
}

/** @param {string} what @param {(files: File[]) => void} onFiles @param {boolean} many */
function camera(what, onFiles, many) {
  const taken = el("p", { class: "soft", role: "status" });
  let number = 0;
  const camera = new Camera((file) => {
    number += 1;
    taken.textContent = `${number} taken`;
    onFiles([file]);
    if (!many) dialog.close();
  }, many);
  const dialog = openDialog(`Camera: ${what}`, el("div", { class: "stacked" }, camera.element, taken), () => camera.stop());
  void camera.start();
}

/** @param {string} what @param {(files: File[]) => void} onFiles @param {boolean} many */
function pad(what, onFiles, many) {
  let number = 0;
  const taken = el("p", { class: "soft", role: "status" });
  const pad = new Pad(() => {});
  const add = async () => {
    if (pad.empty) {
      taken.textContent = "Draw something first.";
      return;
    }
    number += 1;
    onFiles([await pad.picture(`drawn-${number}.png`)]);
    pad.clear();
    taken.textContent = `${number} drawn`;
    if (!many) dialog.close();
  };
  const button = el("button", { type: "button", class: "button primary", onclick: add }, icon("check"), many ? "Add, and draw another" : "Classify");
  const dialog = openDialog(`Draw: ${what}`, el("div", { class: "stacked" }, pad.element, button, taken), () => {});
}
