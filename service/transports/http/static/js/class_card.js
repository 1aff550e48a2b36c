/**
 * One class of a head: its name, its examples, and ways to add more.
 *
 * @import { Added } from "./types.js"
 */

import { el, fill } from "./dom.js";
import { takeDrops } from "./files.js";
import { count } from "./format.js";
import { icon } from "./icons.js";
import { intake } from "./intake.js";
import { detailsOf, notice } from "./problems.js";
import { thumbnail } from "./thumbnails.js";

const SHOWN = 24; // thumbnails

/**
 * @typedef {object} Actions
 * @property {(files: File[]) => void} add
 * @property {() => void} deleteAll
 * @property {(id: string) => Promise<boolean>} deleteOne whether it was
 */

export class ClassCard {
  #head;
  #actions;
  #count = el("span", { class: "card-count" });
  #thumbs = el("ul", { class: "thumbs" });
  #earlier = el("p", { class: "small soft" });
  #progress = el("progress", { hidden: true, max: 1 });
  #news = el("div", { role: "status" });
  #total = 0;

  /** @param {string} head @param {string} label @param {Actions} actions */
  constructor(head, label, actions) {
    this.#head = head;
    this.label = label;
    this.#actions = actions;
    this.#progress.setAttribute("aria-label", `Sending images of ${label}`);
    this.element = el(
      "li",
      { class: "class-card" },
      el(
        "div",
        { class: "card-head" },
        el("h3", {}, label),
        this.#count,
        el("button", { type: "button", class: "icon-button", "aria-label": `Delete class ${label}`, onclick: () => actions.deleteAll() }, icon("trash")),
      ),
      this.#thumbs,
      this.#earlier,
      this.#progress,
      this.#news,
      intake(label, (files) => actions.add(files)),
    );
    takeDrops(this.element, (files) => actions.add(files));
    this.setTotal(0);
  }

  /** @param {number} total examples that the server has */
  setTotal(total) {
    this.#total = total;
    this.#count.textContent = count(total, "example");
    this.#sayEarlier();
  }

  /** @param {number} done @param {number} total both 0: nothing is on its way */
  setProgress(done, total) {
    this.#progress.hidden = total === 0;
    this.#progress.value = total ? done / total : 0;
  }

  /** Show what became of images that were sent. @param {File[]} files @param {Added} added */
  show(files, added) {
    for (const { id, index } of added.added) this.#addThumb(id, files[index]);
    const lines = [
      added.duplicates.length > 0 && `${count(added.duplicates.length, "image")} had been added before.`,
      ...added.conflicts.map(({ index, label }) => `${files[index].name} is an example of ${label} already, so it was not added.`),
      ...added.errors.map(({ index, error }) => `${files[index]?.name ?? "An image"}: ${error.detail}`),
    ].filter((line) => typeof line === "string");
    fill(this.#news, lines.length > 0 && notice("warn", `Not all were added to ${this.label}`, ...shortened(lines)));
  }

  /** @param {unknown} error @param {number} unsent */
  fail(error, unsent) {
    const { title, detail } = detailsOf(error);
    fill(this.#news, notice("warn", title, el("p", {}, detail), el("p", { class: "small" }, `${count(unsent, "image was", "images were")} not added.`)));
  }

  /** @param {string} id @param {File} file */
  #addThumb(id, file) {
    const remove = el("button", { type: "button", class: "thumb-delete", "aria-label": `Delete example ${id} of ${this.label}` }, icon("cross"));
    const item = el("li", {}, thumbnail(this.#head, id, file), remove);
    remove.addEventListener("click", async () => {
      if (await this.#actions.deleteOne(id)) {
        item.remove();
        this.#sayEarlier();
      }
    });
    this.#thumbs.prepend(item);
    while (this.#thumbs.children.length > SHOWN) this.#thumbs.lastElementChild?.remove();
    this.#sayEarlier();
  }

  #sayEarlier() {
    const seen = this.#thumbs.children.length;
    this.#earlier.hidden = this.#total <= seen;
    this.#earlier.textContent = seen ? `and ${this.#total - seen} more` : "Added earlier. The server keeps what it learnt from them, not the pictures.";
  }
}

/** @param {string[]} lines */
function shortened(lines) {
  const shown = lines.slice(0, 5).map((line) => el("p", { class: "small" }, line));
  return lines.length > 5 ? [...shown, el("p", { class: "small" }, `and ${lines.length - 5} more.`)] : shown;
}
