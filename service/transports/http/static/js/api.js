/**
 * The server's API. Whatever goes wrong is a `Problem`, as the server put it, or `Unreachable`.
 *
 * @import { Added, HeadCard, ModelCard, ModelSummary, Prediction, ProblemDetails } from "./types.js"
 */

import { askForKey, key } from "./key.js";

/** What the server says is wrong. */
export class Problem extends Error {
  /** @param {ProblemDetails} details */
  constructor(details) {
    super(details.detail);
    this.details = details;
  }
}

/** There was no answer. */
export class Unreachable extends Error {
  constructor() {
    super("the server cannot be reached");
  }
}

/** Fires `lost` when there was no answer, and `found` when there was one. */
export const reach = new EventTarget();

/**
 * @typedef {object} Request
 * @property {Record<string, string | undefined>} [query]
 * @property {BodyInit} [body]
 * @property {string} [type] of the body, where it does not say it itself
 * @property {string} [accept]
 * @property {AbortSignal} [signal]
 */

/**
 * @param {string} method
 * @param {string[]} path its parts, not escaped
 * @param {Request} [request]
 * @returns {Promise<Blob>}
 */
async function call(method, path, request = {}) {
  const { query = {}, body, type, accept, signal } = request;
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  const search = given.length ? `?${new URLSearchParams(/** @type {[string, string][]} */ (given))}` : "";
  const headers = new Headers({ Accept: accept ?? "application/json" });
  if (type) headers.set("Content-Type", type);
  const sent = key();
  if (sent) headers.set("Authorization", `Bearer ${sent}`);
  let response, content;
  try {
    response = await fetch(`/${path.map(encodeURIComponent).join("/")}${search}`, { method, body, headers, signal });
    content = await response.blob();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    reach.dispatchEvent(new Event("lost"));
    throw new Unreachable();
  }
  reach.dispatchEvent(new Event("found"));
  if (response.status === 401 && (await askForKey(sent, method !== "GET"))) return call(method, path, request);
  if (!response.ok) throw new Problem(await details(response, content));
  return content;
}

/** @param {Response} response @param {Blob} content @returns {Promise<ProblemDetails>} */
async function details(response, content) {
  const id = response.headers.get("X-Request-Id");
  try {
    return { request_id: id, ...JSON.parse(await content.text()) };
  } catch {
    // Something between the page and the server answered in its place.
    const title = `The answer was ${response.status} ${response.statusText}`.trim();
    return { title, detail: "It did not come from Fovea itself.", code: "unknown", status: response.status, request_id: id };
  }
}

/** @param {string} method @param {string[]} path @param {Request} [request] @returns {Promise<any>} */
async function json(method, path, request) {
  const content = await call(method, path, request);
  return content.size ? JSON.parse(await content.text()) : null;
}

/** @param {unknown} value @returns {Request} */
function document(value) {
  return { body: JSON.stringify(value), type: "application/json" };
}

/** One image raw, several as parts of a form. @param {Blob[]} images @returns {Request} */
function images(images) {
  if (images.length === 1) return { body: images[0], type: "application/octet-stream" };
  const form = new FormData();
  for (const image of images) form.append("image", image);
  return { body: form };
}

/** @returns {Promise<{ default: string | null, models: ModelSummary[] }>} */
export const models = () => json("GET", ["v1", "models"]);

/** @param {string} name @returns {Promise<ModelCard>} */
export const modelCard = (name) => json("GET", ["v1", "models", name]);

/**
 * @param {string} model
 * @param {Blob[]} files
 * @param {boolean} explain
 * @returns {Promise<{ model: string, version: string, predictions: (Prediction | { error: ProblemDetails })[] }>}
 */
export const classify = (model, files, explain) =>
  json("POST", ["v1", "models", model, "classify"], {
    ...images(files),
    query: { explain: explain ? "true" : undefined },
  });

/** @param {string} model @param {string} version @param {Blob} file @param {string} label */
export async function explain(model, version, file, label) {
  const answer = await json("POST", ["v1", "models", model, "explain"], { ...images([file]), query: { version, label } });
  return answer.predictions[0];
}

/** The picture as the server sees it, for one that the browser cannot show. @param {string} model @param {Blob} file */
export const picture = (model, file) =>
  call("POST", ["v1", "models", model, "explain"], { ...images([file]), query: { alpha: "0" }, accept: "image/png" });

/** @param {AbortSignal} signal */
export const metrics = async (signal) => (await call("GET", ["metrics"], { accept: "text/plain", signal })).text();

export const alive = () => call("GET", ["healthz"]);

// Heads.

/** @returns {Promise<HeadCard[]>} */
export const heads = async () => (await json("GET", ["v1", "heads"])).heads;

/** @param {string} name @returns {Promise<HeadCard>} */
export const head = (name) => json("GET", ["v1", "heads", name]);

/** @param {string} name @param {string} backbone @returns {Promise<HeadCard>} */
export const putHead = (name, backbone) => json("PUT", ["v1", "heads", name], document({ backbone }));

/** @param {string} name */
export const deleteHead = (name) => json("DELETE", ["v1", "heads", name]);

/** @param {string} name @param {string} label @param {Blob[]} files @returns {Promise<Added>} */
export const addExamples = (name, label, files) =>
  json("POST", ["v1", "heads", name, "examples"], { ...images(files), query: { label } });

/** @param {string} name @param {Blob} zip one folder per label @returns {Promise<Added>} */
export const addZip = (name, zip) =>
  json("POST", ["v1", "heads", name, "examples"], { body: zip, type: "application/zip" });

/** @param {string} name @param {string} id */
export const deleteExample = (name, id) => json("DELETE", ["v1", "heads", name, "examples", id]);

/** @param {string} name @param {string} label @returns {Promise<{ deleted: number }>} */
export const deleteLabel = (name, label) => json("DELETE", ["v1", "heads", name, "examples"], { query: { label } });

/** @param {string} name */
export const fit = (name) => json("POST", ["v1", "heads", name, "fit"]);

/** @param {string} name @param {string | null} version null for the newest @returns {Promise<HeadCard>} */
export const pinHead = (name, version) => json("PUT", ["v1", "heads", name, "version"], document({ version }));

/**
 * @param {string} name
 * @param {Blob} file
 * @returns {Promise<{ id: string, label: string, distance: number }[]>}
 */
export const neighbors = async (name, file) =>
  (await json("POST", ["v1", "heads", name, "neighbors"], { ...images([file]), query: { k: "5" } })).neighbors;
