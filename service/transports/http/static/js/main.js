/** Puts the page together. */

import { Catalogue } from "./catalogue.js";
import { watchConnection } from "./connection.js";
import { byId, fill } from "./dom.js";
import { icon } from "./icons.js";
import { createLive } from "./live.js";
import { createModels } from "./models.js";
import { createTabs } from "./tabs.js";
import { createTeach } from "./teach.js";
import { setTheme, theme, THEMES } from "./theme.js";
import { createTry } from "./try.js";

const catalogue = new Catalogue();

/** Look again, quietly: a lost connection has the banner, and whoever needs the models asks and shows what is wrong. */
function refresh() {
  catalogue.refresh().catch(() => {});
}

watchConnection(byId("connection"), refresh);
createTabs(/** @type {HTMLElement} */ (document.querySelector(".tabs")), {
  try: createTry(byId("panel-try"), catalogue),
  teach: createTeach(byId("panel-teach"), catalogue),
  models: createModels(byId("panel-models"), catalogue),
  live: createLive(byId("panel-live")),
});
addEventListener("focus", refresh);
refresh();

// What is dropped beside its place must not take the page's.
for (const event of ["dragover", "drop"]) addEventListener(event, (dropped) => dropped.preventDefault());

// Not a link to the fragment: fragments are the views' addresses.
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

const button = byId("theme");
const looks = /** @type {const} */ ({ auto: "auto", light: "sun", dark: "moon" });
const words = { auto: "as the system", light: "light", dark: "dark" };

function showTheme() {
  fill(button, icon(looks[theme()]));
  button.setAttribute("aria-label", `Colours: ${words[theme()]}. Change`);
  button.title = `Colours: ${words[theme()]}`;
}

button.addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
  showTheme();
});
showTheme();
