/**
 * The view Live: what the server is doing, from its metrics, looked at each second while the view is seen.
 *
 * @import { View } from "./tabs.js"
 * @import { Line } from "./lines.js"
 * @import { Look } from "./metrics.js"
 */

import * as api from "./api.js";
import { el, fill, uniqueId } from "./dom.js";
import { milliseconds, significant } from "./format.js";
import { Chart } from "./lines.js";
import { growth, parse, quantile, sum, values } from "./metrics.js";
import { errorBox } from "./problems.js";
import { scrolling } from "./report.js";

const EVERY = 1000; // milliseconds
const WINDOW = 120; // seconds that are shown
const SMOOTHED = 10; // seconds that latencies and rates in the table are taken over
const LATE = 5; // seconds between two looks that are a gap
const PATIENCE = 5000; // milliseconds for one look

/** @typedef {{ at: number, look: Look }} Taken at: seconds */

/** @param {HTMLElement} panel @returns {View} */
export function createLive(panel) {
  /** @type {Taken[]} */
  let history = [];
  let open = false;
  let started = 0;
  /** @type {string | null} */
  let model = null;

  const id = uniqueId("live-model");
  const select = el("select", { id });
  const problem = el("div", {});
  const state = el("p", { class: "soft", role: "status" });
  const charts = {
    rate: new Chart("Requests", "requests/s", WINDOW, "answered", 1),
    latency: new Chart("Latency", "ms", WINDOW, "from request to answer", 1),
    errors: new Chart("Errors", "errors/s", WINDOW, "by code", 1),
    queue: new Chart("Queue", "images", WINDOW, "waiting for a batch", 2),
    batch: new Chart("Batch", "images", WINDOW, "mean size", 2),
    inflight: new Chart("In flight", "requests", WINDOW, "without this page's own", 2),
  };
  const table = el("div", {});
  fill(
    panel,
    el("div", { class: "title-row" }, el("h1", { tabindex: -1 }, "Live"), el("div", { class: "field inline" }, el("label", { for: id, class: "label" }, "Model"), select), state),
    problem,
    el("div", { class: "charts" }, ...Object.values(charts).map((chart) => chart.element)),
    table,
  );
  select.addEventListener("change", () => {
    model = select.value || null;
    draw();
  });

  /** @param {number} start */
  async function watch(start) {
    while (start === started) {
      const began = performance.now();
      try {
        const look = parse(await api.metrics(AbortSignal.timeout(PATIENCE)));
        if (start !== started) return;
        history.push({ at: performance.now() / 1000, look });
        history = history.filter(({ at }) => at > performance.now() / 1000 - WINDOW - SMOOTHED);
        problem.replaceChildren();
        draw();
      } catch (error) {
        if (start === started && error instanceof api.Problem) fill(problem, errorBox(error));
      }
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, EVERY - (performance.now() - began))));
    }
  }

  function draw() {
    const last = history[history.length - 1];
    if (!last) return;
    const models = values(last.look, "fovea_request_seconds_count", "model").filter((name) => name !== "unknown");
    listModels(select, models, model);
    /** @type {Record<string, string>} */
    const labels = model === null ? {} : { model };

    /** @param {string} name @param {(before: Look, after: Look, seconds: number) => number | null} value @returns {Line} */
    const line = (name, value) => ({ name, points: steps(history, (before, after, seconds) => value(before, after, seconds), last.at) });
    /** @param {number} share @returns {Line} */
    const latency = (share) => ({
      name: `p${share * 100}`,
      points: history.slice(1).map((taken, index) => {
        const value = quantile(history[Math.max(0, index + 1 - SMOOTHED)].look, taken.look, "fovea_request_seconds", share, labels);
        return value === null ? null : [last.at - taken.at, value * 1000];
      }),
    });
    /** @param {string} counter @param {Record<string, string>} more */
    const rate = (counter, more) => (/** @type {Look} */ before, /** @type {Look} */ after, /** @type {number} */ seconds) =>
      growth(before, after, counter, more) / seconds;

    const shown = model === null ? models : [model];
    const rates = shown.map((name) => line(name, rate("fovea_requests_total", { model: name })));
    charts.rate.show(rates.length ? rates : [line("", () => 0)], `${significant(total(rates))} a second`);
    const [p50, p95] = [latency(0.5), latency(0.95)];
    charts.latency.show([p50, p95], newest(p50) === null ? "no requests now" : `p50 ${inMs(newest(p50))}, p95 ${inMs(newest(p95))}`);
    const codes = values(last.look, "fovea_requests_total", "code").filter((code) => code !== "ok");
    const errors = codes.map((code) => line(code, rate("fovea_requests_total", { ...labels, code })));
    charts.errors.show(errors.length ? errors : [line("", () => 0)], `${significant(total(errors))} a second`);
    const queue = line("", (_, after) => sum(after, "fovea_queue_depth", labels));
    charts.queue.show([queue], `${newest(queue) ?? 0} waiting`);
    const batch = line("", (before, after) => {
      const batches = growth(before, after, "fovea_batch_size_count", labels);
      return batches ? growth(before, after, "fovea_batch_size_sum", labels) / batches : null;
    });
    const size = newest(batch);
    charts.batch.show([batch], size === null ? "no batches now" : `${significant(size)} a batch`);
    const inflight = line("", (_, after) => Math.max(0, sum(after, "fovea_inflight") - 1));
    charts.inflight.show([inflight], `${newest(inflight) ?? 0} now`);
    fill(table, perModel(history, models));
  }

  function resume() {
    started += 1;
    const seen = open && !document.hidden;
    state.textContent = seen ? "" : "Paused";
    if (seen) void watch(started);
  }

  document.addEventListener("visibilitychange", resume);
  return {
    show() {
      open = true;
      resume();
    },
    hide() {
      open = false;
      resume();
    },
  };
}

/**
 * A value for each look and the one before it.
 *
 * @param {Taken[]} history
 * @param {(before: Look, after: Look, seconds: number) => number | null} value
 * @param {number} now
 * @returns {Line["points"]}
 */
function steps(history, value, now) {
  return history.slice(1).flatMap(({ at, look }, index) => {
    const before = history[index];
    /** @type {Line["points"]} */
    const gap = at - before.at > LATE ? [null] : [];
    const found = gap.length ? null : value(before.look, look, at - before.at);
    return now - at > WINDOW ? [] : [...gap, found === null ? null : [now - at, found]];
  });
}

/** @param {Line} line */
function newest({ points }) {
  return points[points.length - 1]?.[1] ?? null;
}

/** @param {Line[]} lines */
function total(lines) {
  return lines.reduce((before, line) => before + (newest(line) ?? 0), 0);
}

/** @param {number | null} ms */
function inMs(ms) {
  return ms === null ? "–" : milliseconds(ms);
}

/** @param {HTMLSelectElement} select @param {string[]} models @param {string | null} chosen */
function listModels(select, models, chosen) {
  if ([...select.options].map(({ value }) => value).join("\n") === ["", ...models].join("\n")) return;
  fill(select, el("option", { value: "" }, "All models"), ...models.map((name) => el("option", { value: name, selected: name === chosen }, name)));
}

/** @param {Taken[]} history @param {string[]} models */
function perModel(history, models) {
  const after = history[history.length - 1];
  const before = history[Math.max(0, history.length - 1 - SMOOTHED)];
  const seconds = after.at - before.at;
  if (!models.length) return el("p", { class: "soft" }, "No model was asked yet.");
  const columns = ["Model", "Requests/s", "p50", "p95", "Waiting", "Batch", "Errors/s", "Requests in all"];
  const rows = models.map((model) => {
    const labels = { model };
    const rate = (/** @type {Record<string, string>} */ more) =>
      seconds > 0 ? growth(before.look, after.look, "fovea_requests_total", { ...labels, ...more }) / seconds : 0;
    const latency = (/** @type {number} */ share) => {
      const found = quantile(before.look, after.look, "fovea_request_seconds", share, labels);
      return inMs(found === null ? null : found * 1000);
    };
    const batches = growth(before.look, after.look, "fovea_batch_size_count", labels);
    const size = batches ? significant(growth(before.look, after.look, "fovea_batch_size_sum", labels) / batches) : "–";
    const cells = [
      significant(rate({})),
      latency(0.5),
      latency(0.95),
      sum(after.look, "fovea_queue_depth", labels),
      size,
      significant(Math.max(0, rate({}) - rate({ code: "ok" }))),
      sum(after.look, "fovea_requests_total", labels).toLocaleString("en"),
    ];
    return el("tr", {}, el("th", { scope: "row" }, model), ...cells.map((cell) => el("td", {}, cell)));
  });
  return el(
    "section",
    { class: "panel" },
    el("h2", {}, "By model"),
    scrolling(
      "Figures by model",
      el(
        "table",
        { class: "numbers" },
        el("caption", { class: "small soft" }, `Over the last ${SMOOTHED} seconds`),
        el("thead", {}, el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...rows),
      ),
    ),
  );
}
