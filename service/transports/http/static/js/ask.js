/**
 * Asking a model about images, few or many.
 *
 * @import { Explanation, Prediction, ProblemDetails } from "./types.js"
 */

import * as api from "./api.js";
import { detailsOf } from "./problems.js";

const AT_ONCE = 16; // images in a request; the server takes 64 unless told otherwise
const BYTES_AT_ONCE = 16 * 2 ** 20;

/**
 * @typedef {object} Outcome of one image
 * @property {Blob} file
 * @property {string} name
 * @property {string} model that answered; for a route the one that it led to
 * @property {string} version
 * @property {Prediction} [prediction]
 * @property {ProblemDetails} [problem] in its place
 * @property {string} [mapless] why there is no map
 * @property {number} roundTrip milliseconds, of the request with this image
 */

/**
 * Images in shares that fit into a request.
 *
 * @template {Blob} T
 * @param {T[]} files
 * @param {number} [most]
 * @returns {T[][]}
 */
export function shares(files, most = AT_ONCE) {
  /** @type {T[][]} */
  const found = [];
  let bytes = Infinity;
  for (const file of files) {
    const last = found[found.length - 1];
    if (bytes + file.size > BYTES_AT_ONCE || last.length === most) {
      found.push([file]);
      bytes = file.size;
    } else {
      last.push(file);
      bytes += file.size;
    }
  }
  return found;
}

/**
 * Classify images, with the maps of their best classes where the model gives maps.
 *
 * @param {string} model
 * @param {File[]} files
 * @param {(outcomes: Outcome[]) => void} onSome what was answered so far; called again with more
 */
export async function ask(model, files, onSome) {
  /** @type {Outcome[]} */
  const outcomes = [];
  for (const share of shares(files)) {
    outcomes.push(...(await askOnce(model, share)));
    onSome(outcomes);
  }
}

/** @param {string} model @param {File[]} files @returns {Promise<Outcome[]>} */
async function askOnce(model, files) {
  const began = performance.now();
  /** @type {string | undefined} */
  let mapless;
  try {
    let answer = await api.classify(model, files, true).catch((error) => {
      mapless = refusal([detailsOf(error)]);
      if (mapless === undefined) throw error;
    });
    mapless ??= refusal(answer?.predictions.map((each) => ("error" in each ? each.error : null)) ?? []);
    if (!answer || mapless !== undefined) answer = await api.classify(model, files, false);
    const { model: name, version, predictions } = answer;
    const roundTrip = performance.now() - began;
    return predictions.map((found, index) => {
      const outcome = { file: files[index], name: files[index].name, model: name, version, mapless, roundTrip };
      return "error" in found ? { ...outcome, problem: found.error } : { ...outcome, prediction: found };
    });
  } catch (error) {
    const problem = detailsOf(error);
    return files.map((file) => ({ file, name: file.name, model, version: "", problem, roundTrip: 0 }));
  }
}

/**
 * Why there are no maps, where that may be all that is wrong: a head on some backbones has none.
 *
 * @param {(ProblemDetails | null)[]} problems of each image
 */
function refusal(problems) {
  return problems.every((problem) => problem?.code === "invalid_request") ? problems[0]?.detail : undefined;
}

/** The map of one class. @param {Outcome} outcome @param {string} label @returns {Promise<Explanation>} */
export function explain(outcome, label) {
  const known = outcome.prediction?.explanation;
  if (known?.label === label) return Promise.resolve(known);
  return api.explain(outcome.model, outcome.version, outcome.file, label);
}

/** The picture, upright. The server draws it where the browser does not know the format. @param {Outcome} outcome */
export async function pictureOf(outcome) {
  try {
    return await createImageBitmap(outcome.file, { imageOrientation: "from-image" });
  } catch (error) {
    if (outcome.problem || outcome.mapless) throw error;
    return createImageBitmap(await api.picture(outcome.model, outcome.file));
  }
}
