/**
 * The models and heads that there are; fires `change` when it has looked.
 *
 * @import { ModelCard, ModelSummary } from "./types.js"
 */

import * as api from "./api.js";

export class Catalogue extends EventTarget {
  /** @type {ModelSummary[]} */
  models = [];
  /** @type {string | null} */
  default = null;
  /** @type {Map<string, Promise<ModelCard>>} */
  #cards = new Map();
  #looks = 0;
  #newest = 0;

  /** Look again. */
  async refresh() {
    this.#looks += 1;
    const look = this.#looks;
    const found = await api.models();
    if (look < this.#newest) return; // a later look was answered before
    this.#newest = look;
    this.models = found.models;
    this.default = found.default ?? found.models.find((model) => model.state === "ready")?.name ?? null;
    this.#cards.clear();
    this.dispatchEvent(new Event("change"));
  }

  /** @param {string} name */
  get(name) {
    return this.models.find((model) => model.name === name);
  }

  /** Everything known of a model; asked for once per look. @param {string} name @returns {Promise<ModelCard>} */
  card(name) {
    const known = this.#cards.get(name);
    if (known) return known;
    const asked = api.modelCard(name);
    this.#cards.set(name, asked);
    asked.catch(() => this.#cards.delete(name));
    return asked;
  }
}
