/** The views as tabs. The address says which is open and what it is about: `#teach/digits`. */

/**
 * @typedef {object} View
 * @property {(subject: string | null) => void} show it is open now; the subject is what follows the view's name
 * @property {() => void} hide another one is
 */

/**
 * @param {HTMLElement} tablist of links with role `tab`, each to a view's hash, whose `aria-controls` is its panel
 * @param {Record<string, View>} views by name
 */
export function createTabs(tablist, views) {
  const tabs = /** @type {HTMLAnchorElement[]} */ ([...tablist.querySelectorAll("[role=tab]")]);
  const names = tabs.map((tab) => tab.hash.slice(1));
  /** @type {string | null} */
  let open = null;
  let last = "";

  function follow() {
    const [wanted, ...subject] = location.hash.slice(1).split("/");
    const name = names.includes(wanted) ? wanted : names[0];
    const byTab = tablist.contains(document.activeElement);
    const first = open === null;
    if (open !== null && open !== name) views[open].hide();
    tabs.forEach((tab, index) => {
      const selected = names[index] === name;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      if (selected) tab.hash = `#${name}`; // from within a view its tab leads to the view's beginning
      else if (names[index] === open) tab.hash = last; // from elsewhere, to where it was left
      panel(tab).hidden = !selected;
      if (selected) document.title = `${tab.textContent} · Fovea`;
    });
    const moved = open !== name;
    open = name;
    last = location.hash;
    views[name].show(subject.length ? unescaped(subject.join("/")) : null);
    if (moved && !first) scrollTo(0, 0);
    // Who followed a link elsewhere on the page goes on reading where it led.
    if (!first && !byTab) panel(tabs[names.indexOf(name)]).querySelector("h1")?.focus({ preventScroll: true });
  }

  tablist.addEventListener("keydown", (event) => {
    const at = tabs.findIndex((tab) => tab === document.activeElement);
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 };
    const to = steps[/** @type {keyof steps} */ (event.key)];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    tab.focus();
    location.hash = tab.hash;
  });
  addEventListener("hashchange", follow);
  follow();
}

/** @param {string} text */
function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody typed a percent sign
  }
}

/** @param {HTMLElement} tab */
function panel(tab) {
  return /** @type {HTMLElement} */ (document.getElementById(tab.getAttribute("aria-controls") ?? ""));
}

/** The address of a view. @param {string} view @param {string} [subject] */
export function address(view, subject) {
  return subject === undefined ? `#${view}` : `#${view}/${encodeURIComponent(subject)}`;
}
