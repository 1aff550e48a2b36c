/** Which model is asked: every model and taught head, the default chosen until somebody chooses another. */

import { el, fill, uniqueId } from "./dom.js";
import { count } from "./format.js";

/**
 * @import { Catalogue } from "./catalogue.js"
 * @import { ModelSummary } from "./types.js"
 */

const SHOWN_LABELS = 12;

export class ModelPicker {
  #catalogue;
  #onChange;
  #select;
  #about = el("p", { class: "small soft" });
  /** @type {string | null} */
  #wanted = null;
  #listed = "";

  /**
   * @param {Catalogue} catalogue
   * @param {() => void} onChange another model is asked from now on
   */
  constructor(catalogue, onChange) {
    const id = uniqueId("model");
    this.#catalogue = catalogue;
    this.#onChange = onChange;
    this.#select = el("select", { id, onchange: () => this.choose(this.#select.value) });
    this.element = el("div", { class: "field" }, el("label", { for: id, class: "label" }, "Model"), this.#select, this.#about);
    catalogue.addEventListener("change", () => this.#list());
  }

  /** The model's name, or nothing if there is none. */
  get model() {
    return this.#wanted ?? this.#catalogue.default;
  }

  /** @param {string} name */
  choose(name) {
    const before = this.model;
    this.#wanted = name;
    this.#list();
    if (before !== null && before !== name) this.#onChange();
  }

  #list() {
    const { models, default: byDefault } = this.#catalogue;
    const chosen = this.model;
    /** @param {ModelSummary} model */
    const option = (model) => {
      const more = [model.name === byDefault && "default", model.state !== "ready" && model.state].filter(Boolean);
      const text = model.name + (more.length ? ` (${more.join(", ")})` : "");
      return el("option", { value: model.name, selected: model.name === chosen, disabled: model.state !== "ready" }, text);
    };
    const known = models.some((model) => model.name === chosen);
    const listed = JSON.stringify([models.map(({ name, kind, state }) => [name, kind, state]), byDefault, chosen]);
    void this.#describe(chosen, known);
    if (listed === this.#listed) return; // a list that somebody has open stays as it is
    this.#listed = listed;
    const taught = models.filter((model) => model.kind === "head");
    fill(
      this.#select,
      chosen !== null && !known && el("option", { value: chosen, selected: true }, chosen), // a route
      ...models.filter((model) => model.kind !== "head").map(option),
      taught.length > 0 && el("optgroup", { label: "Taught" }, ...taught.map(option)),
    );
  }

  /** @param {string | null} name @param {boolean} known */
  async #describe(name, known) {
    if (name === null || !known) {
      this.#about.textContent = "";
      return;
    }
    const card = await this.#catalogue.card(name).catch(() => null);
    if (name !== this.model || !card?.spec) return;
    /** @type {string[]} */
    const labels = card.spec.labels;
    const more = labels.length > SHOWN_LABELS ? ", …" : "";
    this.#about.textContent = `Knows ${count(labels.length, "class", "classes")}: ${labels.slice(0, SHOWN_LABELS).join(", ")}${more}`;
  }
}
