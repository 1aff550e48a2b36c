/** Prometheus' text format, and what can be told from two looks at it. */

/**
 * @typedef {{ labels: Record<string, string>, value: number }} Sample
 * @typedef {Map<string, Sample[]>} Look samples by name
 */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** @param {string} text @returns {Look} */
export function parse(text) {
  /** @type {Look} */
  const look = new Map();
  for (const line of text.split("\n")) {
    const parts = line.startsWith("#") ? null : LINE.exec(line);
    if (!parts) continue;
    const [, name, written = "", number] = parts;
    /** @type {Record<string, string>} */
    const labels = {};
    for (const [, label, value] of written.matchAll(LABEL)) labels[label] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    const samples = look.get(name);
    const sample = { labels, value: number === "+Inf" ? Infinity : Number(number) };
    if (samples) samples.push(sample);
    else look.set(name, [sample]);
  }
  return look;
}

/**
 * The sum of a metric's samples that carry these labels.
 *
 * @param {Look} look
 * @param {string} name
 * @param {Record<string, string>} [labels]
 */
export function sum(look, name, labels = {}) {
  return matching(look, name, labels).reduce((total, { value }) => total + value, 0);
}

/** The values that a label has. @param {Look} look @param {string} name @param {string} label */
export function values(look, name, label) {
  return [...new Set((look.get(name) ?? []).map(({ labels }) => labels[label]))].filter((value) => value !== undefined).sort();
}

/** How much a counter grew; one that was reset has grown by what it holds. @param {Look} before @param {Look} after @param {string} name @param {Record<string, string>} [labels] */
export function growth(before, after, name, labels = {}) {
  const [from, to] = [sum(before, name, labels), sum(after, name, labels)];
  return to >= from ? to - from : to;
}

/**
 * A quantile of what a histogram saw between two looks, linear within a bucket as Prometheus' histogram_quantile.
 *
 * @param {Look} before
 * @param {Look} after
 * @param {string} name without `_bucket`
 * @param {number} share 0.5: the median
 * @param {Record<string, string>} [labels]
 * @returns {number | null} null: it saw nothing
 */
export function quantile(before, after, name, share, labels = {}) {
  const [from, to] = [cumulative(before, name, labels), cumulative(after, name, labels)];
  const buckets = [...to].map(([bound, total]) => ({ bound, count: total - (from.get(bound) ?? 0) }));
  buckets.sort((a, b) => a.bound - b.bound);
  const all = buckets[buckets.length - 1]?.count ?? 0;
  if (!(all > 0)) return null;
  const wanted = share * all;
  const at = buckets.findIndex(({ count }) => count >= wanted);
  const [low, seen] = at > 0 ? [buckets[at - 1].bound, buckets[at - 1].count] : [0, 0];
  const { bound, count } = buckets[at];
  if (bound === Infinity) return low; // all that is known of it
  return low + ((bound - low) * (wanted - seen)) / (count - seen);
}

/** @param {Look} look @param {string} name @param {Record<string, string>} labels @returns {Map<number, number>} by upper bound */
function cumulative(look, name, labels) {
  /** @type {Map<number, number>} */
  const found = new Map();
  for (const { labels: { le }, value } of matching(look, `${name}_bucket`, labels)) {
    const bound = le === "+Inf" ? Infinity : Number(le);
    found.set(bound, (found.get(bound) ?? 0) + value);
  }
  return found;
}

/** @param {Look} look @param {string} name @param {Record<string, string>} labels @returns {Sample[]} */
function matching(look, name, labels) {
  const wanted = Object.entries(labels);
  return (look.get(name) ?? []).filter((sample) => wanted.every(([key, value]) => sample.labels[key] === value));
}
