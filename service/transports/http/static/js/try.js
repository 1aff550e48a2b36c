/** The view Try: an image in, an answer out. */

import { Answer } from "./answer.js";
import { ask } from "./ask.js";
import { Camera } from "./camera.js";
import { announce, el, fill, uniqueId } from "./dom.js";
import { takeDrops, takePastes } from "./files.js";
import { count, percent } from "./format.js";
import { chooseButton } from "./intake.js";
import { icon } from "./icons.js";
import { ModelPicker } from "./picker.js";
import { Pad } from "./pad.js";
import { errorBox, notice, UNREACHABLE } from "./problems.js";
import { samples } from "./samples.js";

/**
 * @import { Outcome } from "./ask.js"
 * @import { Catalogue } from "./catalogue.js"
 * @import { View } from "./tabs.js"
 * @typedef {"picture" | "draw" | "camera"} Source
 */

/** @type {[Source, string, string][]} */
const SOURCES = [["picture", "Picture", "upload"], ["draw", "Draw", "pen"], ["camera", "Camera", "camera"]];

/**
 * @param {HTMLElement} panel
 * @param {Catalogue} catalogue
 * @returns {View}
 */
export function createTry(panel, catalogue) {
  /** @type {File[]} */
  let files = [];
  let asked = 0;
  let unanswered = false; // the server could not be reached
  let open = false;
  /** @type {Source} */
  let source = "picture";

  const picker = new ModelPicker(catalogue, () => again());
  const answer = new Answer();
  const problem = el("div", {});
  const progress = el("p", { class: "progress soft", role: "status", hidden: true });
  const empty = el(
    "div",
    { class: "empty" },
    el("p", { class: "empty-title" }, "The answer appears here"),
    el("p", { class: "soft" }, "How likely each class is, calibrated; the set that holds the true class as often as promised; and where in the image the model looked."),
  );
  const drawn = el("p", { class: "drawn" }); // beside the pad too, for screens that show no more than the pad
  const pad = new Pad(async () => {
    drawn.textContent = "";
    if (!pad.empty) void classify([await pad.picture("drawing.png")]);
  });
  const camera = new Camera((file) => classify([file]));
  const choose = chooseButton("Choose images", classify, { primary: true });

  const sources = {
    picture: el(
      "div",
      { class: "drop" },
      icon("upload"),
      el("p", {}, "Drop images here, or paste them"),
      choose,
    ),
    draw: el("div", { class: "stacked" }, pad.element, drawn, el("p", { class: "small soft" }, "It is cut out, centred, and classified whenever the pen is lifted.")),
    camera: el("div", {}, camera.element),
  };

  /** @param {File[]} given */
  async function classify(given) {
    files = given;
    unanswered = false;
    const now = (asked += 1);
    problem.replaceChildren();
    try {
      if (!picker.model) await catalogue.refresh(); // the page has only just begun
    } catch (error) {
      unanswered = true;
      fill(problem, errorBox(error));
      return;
    }
    if (now !== asked) return;
    if (!picker.model) {
      fill(problem, notice("info", "There is no model to ask.", el("p", {}, "Models says what there is.")));
      return;
    }
    progress.textContent = given.length > 1 ? `0 of ${given.length} images answered` : "";
    progress.hidden = given.length < 2;
    results.setAttribute("aria-busy", "true");
    await ask(picker.model, given, (outcomes) => {
      if (now !== asked) return;
      empty.hidden = true;
      progress.textContent = `${outcomes.length} of ${count(given.length, "image")} answered`;
      answer.show(outcomes);
      unanswered = outcomes.some((outcome) => outcome.problem?.code === UNREACHABLE);
      drawn.textContent = source === "draw" ? brief(outcomes[0]) : "";
    });
    if (now !== asked) return;
    if (source !== "draw" && results.getBoundingClientRect().top > innerHeight * 0.7) results.scrollIntoView();
    progress.hidden = true;
    results.removeAttribute("aria-busy");
  }

  function again() {
    if (files.length) void classify(files);
  }

  /** @param {Source} wanted */
  function show(wanted) {
    source = wanted;
    for (const [name] of SOURCES) sources[name].hidden = name !== source;
    if (open && source === "camera") void camera.start();
    else camera.stop();
  }

  const results = el("div", { class: "results" }, problem, progress, empty, answer.element);
  fill(
    panel,
    el("h1", { tabindex: -1 }, "Try a model"),
    el(
      "div",
      { class: "split" },
      el("div", { class: "panel side" }, picker.element, segmented(source, show), ...Object.values(sources), sampleRow(classify)),
      results,
    ),
  );
  show(source);
  takeDrops(panel, classify);
  catalogue.addEventListener("change", () => unanswered && again()); // it is back
  takePastes(classify, () => open);

  return {
    show(model) {
      open = true;
      if (model !== null) picker.choose(model);
      show(source);
    },
    hide() {
      open = false;
      camera.stop();
    },
  };
}

/** @param {Outcome} outcome */
function brief({ prediction, problem }) {
  if (!prediction) return problem?.title ?? "";
  const { label, probability } = prediction.classes[0];
  return `${label}, ${percent(probability)}${prediction.abstained ? ", but unlike the training data" : ""}`;
}

/** @param {Source} chosen @param {(source: Source) => void} onChoose */
function segmented(chosen, onChoose) {
  const group = uniqueId("source");
  return el(
    "fieldset",
    { class: "segmented" },
    el("legend", { class: "unseen" }, "Where the image comes from"),
    ...SOURCES.map(([name, text, symbol]) =>
      el(
        "label",
        {},
        el("input", { type: "radio", name: group, value: name, checked: name === chosen, onchange: () => onChoose(name) }),
        el("span", {}, icon(symbol), text),
      ),
    ),
  );
}

/** @param {(files: File[]) => void} onFiles */
function sampleRow(onFiles) {
  const row = el("ul", { class: "samples" });
  void samples().then((files) => {
    for (const file of files) {
      const name = file.name.replace(/\.png$/, "");
      const picture = el("img", { src: URL.createObjectURL(file), alt: "", width: 128, height: 128 });
      const button = el("button", { type: "button", "aria-label": `Sample: ${name}`, title: name }, picture);
      button.addEventListener("click", () => {
        announce(`Asking about the sample ${name}.`);
        onFiles([file]);
      });
      row.append(el("li", {}, button));
    }
    const all = el("button", { type: "button", class: "link", onclick: () => onFiles(files) }, "All of them");
    row.after(all);
  });
  return el("div", { class: "sample-box" }, el("h2", { class: "label" }, "Or take a sample"), row);
}
