/**
 * The view Models: a card for each model and each head.
 *
 * @import { Catalogue } from "./catalogue.js"
 * @import { View } from "./tabs.js"
 * @import { ModelCard } from "./types.js"
 */

import { el, fill } from "./dom.js";
import { count, percent, round, scientific, short, significant } from "./format.js";
import { icon } from "./icons.js";
import { errorBox, notice } from "./problems.js";
import { reliabilityDiagram } from "./reliability.js";
import { figures, scrolling } from "./report.js";
import { address } from "./tabs.js";

/**
 * @param {HTMLElement} panel
 * @param {Catalogue} catalogue
 * @returns {View}
 */
export function createModels(panel, catalogue) {
  let open = false;
  let draws = 0;
  let drawn = "";
  const place = el("div", { class: "model-cards" });
  fill(panel, el("h1", { tabindex: -1 }, "Models"), place);

  async function draw() {
    const now = (draws += 1);
    try {
      const cards = await Promise.all(catalogue.models.map(({ name }) => catalogue.card(name)));
      const found = JSON.stringify(cards);
      if (now !== draws || found === drawn) return; // nor close what the reader has opened
      drawn = found;
      if (cards.length) fill(place, ...cards.map(modelCard));
      else fill(place, el("p", { class: "soft" }, "The server has no models yet. It sees what is published in its repository within a second."));
    } catch (error) {
      if (now === draws) fail(error);
    }
  }

  /** @param {unknown} error */
  function fail(error) {
    drawn = "";
    fill(place, errorBox(error));
  }

  catalogue.addEventListener("change", () => open && draw());
  return {
    show() {
      open = true;
      catalogue.refresh().catch(fail);
    },
    hide() {
      open = false;
    },
  };
}

/** @param {ModelCard} card */
function modelCard(card) {
  const { spec } = card;
  const head = card.kind === "head";
  const reliability = spec?.calibration.reliability?.length ? spec.calibration.reliability : (spec?.report?.reliability ?? []);
  return el(
    "article",
    { class: "panel model-card" },
    el(
      "div",
      { class: "card-head" },
      el("h2", {}, card.name),
      el("span", { class: `state ${card.state}` }, card.state),
      head && el("span", { class: "state" }, "taught"),
      card.state === "ready" && el("a", { class: "button", href: address("try", card.name), "aria-label": `Try ${card.name}` }, "Try"),
      head && el("a", { class: "button", href: address("teach", card.name), "aria-label": `Teach ${card.name}` }, "Teach"),
    ),
    card.problem !== null && notice("warn", card.problem),
    card.pinned !== null && notice("info", `Version ${card.pinned} is pinned: it answers, whatever is published.`),
    spec && el("p", { class: "soft" }, head ? aboutHead(spec) : aboutModel(spec)),
    spec && figures(head ? headFigures(spec) : modelFigures(spec)),
    reliability.length > 0 && el("details", {}, el("summary", {}, "Reliability"), reliabilityDiagram(reliability)),
    spec && reliability.length === 0 && el("p", { class: "small soft" }, "There is no reliability diagram: it was published without the figures for one."),
    spec && el("details", {}, el("summary", {}, count(spec.labels.length, "class", "classes")), el("ul", { class: "chips small" }, ...spec.labels.map((/** @type {string} */ label) => el("li", {}, label)))),
    versions(card),
  );
}

/** @param {any} spec */
function aboutModel(spec) {
  const { width, height, channels } = spec.image;
  const colour = channels === 1 ? "grey" : "colour";
  return `${spec.architecture}, ${spec.weights.source}. Sees ${width} × ${height} pixels in ${colour}, ${spec.precision}.${spec.paper ? ` ${spec.paper}.` : ""}`;
}

/** @param {any} spec */
function aboutHead(spec) {
  return `Taught on ${spec.backbone.name}, version ${spec.backbone.version}, with ${count(spec.report.examples, "example")}.`;
}

/** @param {any} spec @returns {[string, string, string][]} */
function modelFigures({ accuracy, parameters, macs, calibration }) {
  return [
    accuracy ? ["Accuracy", percent(accuracy.top1), `${accuracy.data}, ${count(accuracy.images, "image")}`] : ["Accuracy", "unknown", "it was published without test data"],
    ["Parameters", short(parameters), "weights in the network"],
    ["Work", short(macs), "multiply-accumulates an image"],
    ...calibrationFigures(calibration),
  ];
}

/** @param {any} spec @returns {[string, string, string][]} */
function headFigures({ report, calibration }) {
  return [
    ["Accuracy", report.accuracy === null ? "unknown" : percent(report.accuracy), report.accuracy === null ? "too few examples" : `on ${report.validated} held out`],
    ...calibrationFigures(calibration),
  ];
}

/** @param {any} calibration @returns {[string, string, string][]} */
function calibrationFigures(calibration) {
  const { ece_before: before, ece_after: after, false_alarm_rate: alarms } = calibration;
  const abstains = [calibration.abstain_above_energy, calibration.abstain_above_distance].some((limit) => typeof limit === "number");
  /** @type {[string, string, string][]} */
  const found = [];
  if (after !== null) found.push(["Calibration error", percent(after, 2), before === null ? "on held-out images" : `${percent(before, 2)} before calibration`]);
  found.push(...coverageFigures(calibration));
  if (!abstains) found.push(["Abstains", "never", "it has no sense of what is strange to it"]);
  else if (typeof alarms === "number") found.push(["Abstains", percent(alarms), "of held-out images of its own kind"]);
  else found.push(["Abstains", "yes", "how often was not measured"]);
  return found;
}

/** @param {any} calibration @returns {[string, string, string][]} */
function coverageFigures({ conformal_quantile: quantile, coverage, measured_coverage: measured, mean_set_size: size }) {
  if (quantile === null) return [["Prediction sets", "none", "it was not calibrated for them"]];
  if (measured === null) return [["Coverage", round(coverage), "asked; there were too few images to measure it"]];
  return [["Coverage", percent(measured), `${round(coverage)} asked${size === null ? "" : `, ${significant(size)} classes a set`}`]];
}

/** @param {ModelCard} card */
function versions(card) {
  const tolerance = card.spec?.golden_tolerance;
  return scrolling(
    `Versions of ${card.name}`,
    el(
      "table",
      { class: "numbers" },
      el("caption", { class: "unseen" }, `Versions of ${card.name}`),
      el("thead", {}, el("tr", {}, ...["Version", "State", "Golden check"].map((name) => el("th", { scope: "col" }, name)))),
      el(
        "tbody",
        {},
        ...card.versions.map((each) =>
          el(
            "tr",
            { class: each.version === card.version && "current" },
            el("th", { scope: "row" }, each.version),
            el("td", {}, el("span", { class: `state ${each.state}` }, each.state), each.problem !== null && el("p", { class: "small" }, each.problem)),
            el("td", { class: "wrap" }, ...golden(card.kind, each.golden_difference, tolerance)),
          ),
        ),
      ),
    ),
  );
}

/**
 * @param {string} kind
 * @param {number | null} difference
 * @param {number | undefined} tolerance
 * @returns {import("./dom.js").Child[]}
 */
function golden(kind, difference, tolerance) {
  if (kind === "head") return ["as its backbone's"];
  if (difference === null) return ["not passed"];
  const limit = tolerance === undefined ? "" : ` (at most ${scientific(tolerance)})`;
  return [icon("check"), ` off by ${scientific(difference)}${limit}`];
}
