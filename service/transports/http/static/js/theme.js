/** Light, dark, or as the system has it; kept in the browser. */

const KEY = "fovea-theme";

/** @typedef {"auto" | "light" | "dark"} Theme */

/** @type {Theme[]} */
export const THEMES = ["auto", "light", "dark"];

/** The theme that was chosen. @returns {Theme} */
export function theme() {
  try {
    return THEMES.find((known) => known === localStorage.getItem(KEY)) ?? "auto";
  } catch {
    return "auto"; // a browser that keeps nothing
  }
}

/** Choose a theme. @param {Theme} wanted */
export function setTheme(wanted) {
  try {
    localStorage.setItem(KEY, wanted);
  } catch {
    // It holds until the page is left.
  }
  document.documentElement.dataset.theme = wanted;
}

document.documentElement.dataset.theme = theme();
