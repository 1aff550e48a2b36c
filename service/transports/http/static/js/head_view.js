/**
 * One head, opened: its classes and their examples, the fit, what came of it, and its versions.
 *
 * @import { Catalogue } from "./catalogue.js"
 * @import { Added, HeadCard, Report } from "./types.js"
 */

import * as api from "./api.js";
import { ClassCard } from "./class_card.js";
import { confirm } from "./dialog.js";
import { announce, el, fill, uniqueId } from "./dom.js";
import { takeDrops } from "./files.js";
import { count, percent } from "./format.js";
import { icon } from "./icons.js";
import { chooseButton } from "./intake.js";
import { errorBox, notice } from "./problems.js";
import { reportView } from "./report.js";
import { address } from "./tabs.js";
import { createTryBox } from "./try_box.js";
import { Uploads } from "./uploads.js";
import { versionTable } from "./versions.js";

export class HeadView {
  #catalogue;
  /** @type {HeadCard} */
  #card;
  /** @type {Map<string, ClassCard>} */
  #classes = new Map();
  /** @type {ClassCard | null} */
  #active = null;
  #uploads;
  #fitting = false;

  #about = el("p", { class: "soft" });
  #problem = el("div", {});
  #grid = el("ul", { class: "class-grid" });
  #fitButton = el("button", { type: "button", class: "button primary large", onclick: () => this.#fit() }, "Fit");
  #fitHint = el("p", { class: "soft", role: "status" });
  #result = el("div", { class: "fit-result" });
  #tryBox;
  #versions = el("div", {});
  #zipNews = el("div", { role: "status" });

  /** @param {HeadCard} card @param {Catalogue} catalogue */
  constructor(card, catalogue) {
    this.#card = card;
    this.#catalogue = catalogue;
    this.#uploads = new Uploads(card.name, {
      onProgress: (label, done, total) => this.#classes.get(label)?.setProgress(done, total),
      onAdded: (label, files, added) => {
        this.#classes.get(label)?.show(files, added);
        this.#counted(added);
      },
      onError: (label, error, unsent) => this.#classes.get(label)?.fail(error, unsent),
    });
    this.#tryBox = createTryBox(card.name);
    this.element = el(
      "div",
      { class: "head-view" },
      el("p", {}, el("a", { class: "back", href: "#teach" }, icon("back"), "All classifiers")),
      el("h1", { tabindex: -1 }, card.name),
      this.#about,
      this.#problem,
      this.#examples(),
      el("section", { "aria-label": "Fit" }, el("h2", {}, "2. Fit"), el("div", { class: "row fit-row" }, this.#fitButton, this.#fitHint), this.#result),
      this.#tryBox,
      this.#versions,
      el(
        "section",
        { class: "end-section" },
        el("button", { type: "button", class: "button danger", onclick: () => this.#deleteHead() }, icon("trash"), "Delete this classifier"),
      ),
    );
    this.#show(card);
    if (card.version !== null) void this.#showStoredReport();
  }

  /** Images that were pasted somewhere on the page. @param {File[]} files */
  paste(files) {
    if (this.#active) this.#uploads.add(this.#active.label, files);
    else fill(this.#problem, notice("info", "Choose a class first: click its card, then paste."));
  }

  // What is shown.

  /** @param {HeadCard} card */
  #show(card) {
    this.#card = card;
    const { backbone } = card;
    fill(
      this.#about,
      `${card.version === null ? "Builds" : "Taught"} on ${backbone.name}, version ${backbone.version}. `,
      card.state === "ready" && el("a", { href: address("try", card.name) }, "Open it in Try"),
    );
    fill(this.#problem, card.problem !== null && card.state === "failed" && notice("warn", "It does not answer now.", el("p", {}, card.problem)));
    this.#showCounts(card.examples.labels);
    this.#tryBox.hidden = card.state !== "ready";
    fill(
      this.#versions,
      card.versions.length > 0 && el("section", {}, el("h2", {}, "Versions"), versionTable(card, (version) => this.#pin(version))),
    );
  }

  /** @param {{ label: string, count: number }[]} labels */
  #showCounts(labels) {
    const counts = new Map(labels.map(({ label, count }) => [label, count]));
    for (const label of counts.keys()) this.#class(label);
    for (const [label, card] of this.#classes) card.setTotal(counts.get(label) ?? 0);
    const filled = labels.filter((each) => each.count > 0).length;
    this.#fitButton.setAttribute("aria-disabled", String(filled < 2 || this.#fitting));
    if (this.#fitting) return;
    if (filled < 2) this.#fitHint.textContent = "Two classes with examples are needed; ten of each make a good start.";
    else if (this.#card.version === null) this.#fitHint.textContent = "Ready to fit.";
    else if (this.#card.changed_since_fit) this.#fitHint.textContent = "The examples have changed since the last fit: fit again.";
    else this.#fitHint.textContent = "Fitted on all of these examples.";
  }

  /** @param {string} label */
  #class(label) {
    const known = this.#classes.get(label);
    if (known) return known;
    const card = new ClassCard(this.#card.name, label, {
      add: (files) => this.#uploads.add(label, files),
      deleteAll: () => this.#deleteClass(label),
      deleteOne: (id) => this.#deleteExample(id, label),
    });
    for (const event of ["focusin", "pointerdown"]) card.element.addEventListener(event, () => this.#activate(card));
    this.#classes.set(label, card);
    this.#grid.append(card.element);
    return card;
  }

  /** @param {ClassCard} card */
  #activate(card) {
    this.#active?.element.classList.remove("active");
    this.#active = card;
    card.element.classList.add("active");
  }

  /** @param {Added} added */
  #counted(added) {
    this.#card.examples = added.examples;
    if (added.added.length) this.#card.changed_since_fit = true;
    this.#showCounts(added.examples.labels);
  }

  #examples() {
    const section = el(
      "section",
      { "aria-label": "Classes and examples" },
      el("h2", {}, "1. Show it examples"),
      this.#grid,
      el("div", { class: "row below" }, this.#addForm(), this.#zipButton()),
      this.#zipNews,
    );
    takeDrops(section, ([file]) => {
      if (/\.zip$/i.test(file.name)) void this.#sendZip(file);
      else fill(this.#zipNews, notice("info", "Drop images on the card of their class; here, a zip of one folder per class."));
    });
    return section;
  }

  #addForm() {
    const id = uniqueId("class");
    const first = this.#card.examples.total === 0 && "first"; // what a new classifier begins with
    const input = el("input", { id, class: first, type: "text", maxlength: 64, placeholder: "Name of a class", autocomplete: "off" });
    const form = el(
      "form",
      { class: "row" },
      el("label", { for: id, class: "unseen" }, "Name of a new class"),
      input,
      el("button", { type: "submit", class: "button" }, icon("plus"), "Add class"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const label = input.value.trim().normalize("NFC"); // as the server has it
      input.focus();
      if (!label) return;
      input.value = "";
      this.#activate(this.#class(label));
      announce(`Class ${label} is there.`);
    });
    return form;
  }

  // What is done.

  /** @param {() => Promise<void>} work */
  async #attempt(work) {
    this.#problem.replaceChildren();
    try {
      await work();
      return true;
    } catch (error) {
      fill(this.#problem, errorBox(error));
      this.#problem.scrollIntoView({ block: "nearest" });
      return false;
    }
  }

  #zipButton() {
    const options = { multiple: false, accept: ".zip,application/zip", symbol: "archive", label: "Upload a zip with one folder of images per class" };
    const button = chooseButton("Zip: a folder per class", ([zip]) => this.#sendZip(zip), options);
    return el("div", { class: "row" }, el("span", { class: "soft" }, "or"), button);
  }

  /** @param {File} zip */
  async #sendZip(zip) {
    fill(this.#zipNews, el("p", { class: "soft" }, `Sending ${zip.name} …`));
    const sent = await this.#attempt(async () => {
      const added = await api.addZip(this.#card.name, zip);
      this.#counted(added);
      fill(this.#zipNews, zipNews(added));
    });
    if (!sent) this.#zipNews.replaceChildren();
  }

  async #fit() {
    if (this.#fitButton.getAttribute("aria-disabled") === "true") return;
    this.#fitting = true;
    this.#fitButton.setAttribute("aria-disabled", "true");
    this.#fitButton.classList.add("busy");
    this.#fitHint.textContent = "Fitting …";
    await this.#attempt(async () => {
      const fit = await api.fit(this.#card.name);
      this.#showReport(fit, fit.prediction_sets ? fit.coverage : null);
      announce(`Version ${fit.version} is fitted. Accuracy ${fit.accuracy === null ? "unknown" : percent(fit.accuracy)}.`);
      this.#fitting = false;
      this.#show(await api.head(this.#card.name));
      this.#fitHint.textContent = `Version ${fit.version}, fitted on ${count(fit.examples, "example")} in ${fit.seconds.toFixed(1)} s.`;
      this.#catalogue.refresh().catch(() => {});
    });
    this.#fitting = false;
    this.#fitButton.classList.remove("busy");
    this.#fitButton.setAttribute("aria-disabled", "false");
    if (this.#fitHint.textContent === "Fitting …") this.#fitHint.textContent = "It was not fitted.";
  }

  async #showStoredReport() {
    try {
      const { spec } = await api.modelCard(this.#card.name);
      if (spec?.report) this.#showReport(spec.report, spec.calibration.conformal_quantile === null ? null : spec.calibration.coverage);
    } catch (error) {
      if (this.#card.state === "ready") fill(this.#problem, errorBox(error));
    }
  }

  /** @param {Report} report @param {number | null} coverage */
  #showReport(report, coverage) {
    fill(this.#result, reportView(report, { coverage }));
  }

  /** @param {string | null} version */
  async #pin(version) {
    await this.#attempt(async () => {
      this.#show(await api.pinHead(this.#card.name, version));
      await this.#showStoredReport();
      announce(`Version ${this.#card.version} answers now.`);
      this.#catalogue.refresh().catch(() => {});
    });
  }

  /** @param {string} id @param {string} label */
  async #deleteExample(id, label) {
    if (!(await confirm("Delete this example?", `It is one of ${label}.`, "Delete"))) return false;
    return this.#attempt(async () => {
      await api.deleteExample(this.#card.name, id);
      this.#show(await api.head(this.#card.name));
    });
  }

  /** @param {string} label */
  async #deleteClass(label) {
    const number = this.#card.examples.labels.find((each) => each.label === label)?.count ?? 0;
    if (number && !(await confirm(`Delete ${label}?`, `Its ${count(number, "example")} will be deleted too.`, "Delete"))) return;
    await this.#attempt(async () => {
      if (number) await api.deleteLabel(this.#card.name, label);
      if (this.#active === this.#classes.get(label)) this.#active = null;
      this.#classes.get(label)?.element.remove();
      this.#classes.delete(label);
      this.#show(await api.head(this.#card.name));
    });
  }

  async #deleteHead() {
    const { name, examples } = this.#card;
    if (!(await confirm(`Delete ${name}?`, `With ${count(examples.total, "example")} and all versions. It cannot be taken back.`, "Delete"))) return;
    await this.#attempt(async () => {
      await api.deleteHead(name);
      this.#catalogue.refresh().catch(() => {});
      location.hash = "#teach";
    });
  }
}

/** What became of the images of a zip. @param {Added} added */
function zipNews({ added, duplicates, conflicts, errors }) {
  const left = [
    ...conflicts.map(({ name, label }) => `${name} is an example of ${label} already.`),
    ...errors.map(({ name, error }) => `${name}: ${error.detail}`),
  ];
  const before = duplicates.length ? `, ${duplicates.length} had been before` : "";
  const lines = left.slice(0, 5).map((line) => el("p", { class: "small" }, line));
  if (left.length > 5) lines.push(el("p", { class: "small" }, `and ${left.length - 5} more.`));
  return notice(left.length ? "warn" : "good", `${count(added.length, "image was", "images were")} added${before}.`, ...lines);
}
