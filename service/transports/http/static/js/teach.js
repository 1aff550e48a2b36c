/**
 * The view Teach: the heads that there are, a new one, and the one that is open.
 *
 * @import { Catalogue } from "./catalogue.js"
 * @import { View } from "./tabs.js"
 * @import { HeadCard } from "./types.js"
 */

import * as api from "./api.js";
import { el, fill, uniqueId } from "./dom.js";
import { takePastes } from "./files.js";
import { count, percent } from "./format.js";
import { HeadView } from "./head_view.js";
import { icon } from "./icons.js";
import { errorBox, notice } from "./problems.js";
import { address } from "./tabs.js";

const NAME = "my-classifier";

/**
 * @param {HTMLElement} panel
 * @param {Catalogue} catalogue
 * @returns {View}
 */
export function createTeach(panel, catalogue) {
  /** @type {HeadView | null} */
  let view = null;
  /** @type {string | null} */
  let opened = null;
  /** @type {string | null} */
  let wanted = null;
  let open = false;
  let shown = 0;

  /** Show other things; whoever was reading the old ones is led to them. @param {...import("./dom.js").Child} content */
  function put(...content) {
    const reading = panel.contains(document.activeElement);
    fill(panel, ...content);
    const first = panel.querySelector(".first") ?? panel.querySelector("h1");
    if (reading && first instanceof HTMLElement) first.focus({ preventScroll: true });
  }

  /** @param {string | null} name */
  async function show(name) {
    open = true;
    wanted = name;
    if (name !== null && name === opened) return; // what was being done there goes on
    const now = (shown += 1);
    view = opened = null;
    put(heading(name), el("p", { class: "soft" }, "Looking …"));
    try {
      const found = name === null ? await api.heads() : await api.head(name);
      if (!catalogue.models.length) await catalogue.refresh();
      if (now !== shown) return;
      if (Array.isArray(found)) {
        showList(found);
      } else {
        opened = name;
        view = new HeadView(found, catalogue);
        put(view.element);
      }
    } catch (error) {
      if (now !== shown) return;
      put(heading(name), failure(error), name !== null && el("a", { href: "#teach" }, "All classifiers"));
    }
  }

  /** @param {HeadCard[]} heads */
  function showList(heads) {
    put(
      heading(null),
      el("p", { class: "lead" }, "Show a few images of each class. A small classifier is fitted on what a network already sees in them, checked on examples held out, and answers at once."),
      el("div", { class: "split" }, createForm(catalogue, heads), heads.length ? headList(heads) : el("div", { class: "empty" }, el("p", { class: "empty-title" }, "Nothing is taught yet"), el("p", { class: "soft" }, "Name the first classifier, choose what it builds on, and show it examples."))),
    );
  }

  takePastes((files) => view?.paste(files), () => open && view !== null);
  catalogue.addEventListener("change", () => {
    if (open && opened === null && panel.querySelector(".notice.bad")) void show(wanted); // the server is back
  });
  return {
    show: (name) => void show(name),
    hide() {
      open = false;
    },
  };
}

/** @param {string | null} head */
function heading(head) {
  return el("h1", { tabindex: -1 }, head ?? "Teach a classifier");
}

/** @param {unknown} error */
function failure(error) {
  if (error instanceof api.Problem && error.details.code === "not_found") {
    return notice("info", "Teaching is not available on this server.", el("p", {}, "A newer Fovea has it."));
  }
  return errorBox(error);
}

/** @param {Catalogue} catalogue @param {HeadCard[]} heads */
function createForm(catalogue, heads) {
  const taken = new Set(heads.map(({ name }) => name));
  let name = NAME;
  for (let number = 2; taken.has(name); number += 1) name = `${NAME}-${number}`;
  const [nameId, backboneId] = [uniqueId("name"), uniqueId("backbone")];
  const problem = el("div", {});
  const input = el("input", { id: nameId, type: "text", required: true, maxlength: 64, value: name, autocomplete: "off", spellcheck: "false" });
  const select = el("select", { id: backboneId });
  const about = el("p", { class: "small soft" });
  // The network that tells most classes apart has the most to say about others.
  const backbones = catalogue.models.filter((model) => model.kind === "model").sort((a, b) => (b.labels ?? 0) - (a.labels ?? 0));
  for (const model of backbones) select.append(el("option", { value: model.name, disabled: model.state !== "ready" }, model.name));

  const describe = async () => {
    const card = await catalogue.card(select.value).catch(() => null);
    if (card?.spec?.name !== select.value) return;
    about.textContent = `${card.spec.architecture}, ${card.spec.weights.source}; ${card.spec.features} features${card.spec.places ? ", with maps" : ", without maps"}.`;
  };
  select.addEventListener("change", describe);
  if (backbones.length) void describe();

  const form = el(
    "form",
    { class: "panel side" },
    el("h2", {}, "A new one"),
    el("div", { class: "field" }, el("label", { for: nameId, class: "label" }, "Name"), input),
    el("div", { class: "field" }, el("label", { for: backboneId, class: "label" }, "Builds on"), select, about),
    problem,
    el("button", { type: "submit", class: "button primary large" }, "Begin"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const card = await api.putHead(input.value.trim(), select.value);
      location.hash = address("teach", card.name);
    } catch (error) {
      fill(problem, errorBox(error));
    }
  });
  return form;
}

/** @param {HeadCard[]} heads */
function headList(heads) {
  return el(
    "ul",
    { class: "head-list" },
    ...heads.map((head) => {
      const accuracy = head.versions.find(({ version }) => version === head.version)?.accuracy;
      const facts = [
        `on ${head.backbone.name}`,
        count(head.examples.total, "example"),
        count(head.examples.labels.length, "class", "classes"),
        typeof accuracy === "number" && `accuracy ${percent(accuracy)}`,
      ].filter(Boolean);
      return el(
        "li",
        {},
        el(
          "a",
          { class: "head-link", href: address("teach", head.name) },
          el("span", { class: "head-name" }, head.name),
          el("span", { class: `state ${head.state}` }, head.state === "untaught" ? "not fitted yet" : head.state),
          el("span", { class: "soft" }, facts.join(" · ")),
          icon("back"),
        ),
      );
    }),
  );
}
