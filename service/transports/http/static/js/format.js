/** Numbers, times and lists as people read them. */

/** A share of one. @param {number} share @param {number} [digits] */
export function percent(share, digits = 1) {
  const least = 10 ** -(digits + 2);
  if (share > 0 && share < least / 2) return `< ${(least * 100).toFixed(digits)} %`;
  if (share < 1 && share > 1 - least / 2) return `> ${(100 - least * 100).toFixed(digits)} %`;
  return `${(share * 100).toFixed(share === 0 || share === 1 ? 0 : digits)} %`;
}

/** A share without needless decimals: 95 %, 97.5 %. @param {number} share */
export function round(share) {
  return `${Number((share * 100).toFixed(2))} %`;
}

/** A large number: 61 k, 12.3 M. @param {number} count */
export function short(count) {
  for (const [size, unit] of /** @type {[number, string][]} */ ([[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])) {
    if (count >= size) return `${significant(count / size)} ${unit}`;
  }
  return String(count);
}

/** Three significant digits. @param {number} value */
export function significant(value) {
  return String(Number(value.toPrecision(3)));
}

/** A small number in figures: 1.6e-9 as 1.6 × 10⁻⁹. @param {number} value */
export function scientific(value) {
  if (value === 0 || (value >= 0.001 && value < 10000)) return significant(value);
  const [mantissa, exponent] = value.toExponential(1).split("e");
  return `${mantissa} × 10${[...String(Number(exponent))].map((digit) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(digit)]).join("")}`;
}

/** @param {number} ms */
export function milliseconds(ms) {
  if (ms >= 10000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** One image, two images. @param {number} number @param {string} noun @param {string} [nouns] */
export function count(number, noun, nouns = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;
}

/** a, b or c. @param {string[]} words @param {string} [last] */
export function list(words, last = "or") {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words[words.length - 1]}`;
}

/** A time of the server, as the reader's clock says it. @param {string} iso */
export function time(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

/** With a capital letter to begin with. @param {string} text */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
