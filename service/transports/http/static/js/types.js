/**
 * The shapes of what the API answers; `/docs` has them in full.
 *
 * @typedef {{ label: string, index: number, probability: number }} ClassScore
 * @typedef {{ decode: number, queue: number, infer: number, total: number }} Timings milliseconds
 *
 * @typedef {object} Explanation
 * @property {string} label
 * @property {number[][]} map `h` rows of `w` numbers from 0 to 1
 * @property {[number, number, number, number]} region left, top, right, bottom, in pixels of the upright image
 * @property {[number, number]} image_size width, height
 *
 * @typedef {object} Prediction
 * @property {ClassScore[]} classes
 * @property {string[] | null} prediction_set
 * @property {number | null} coverage
 * @property {boolean} abstained
 * @property {Timings} timings_ms
 * @property {Explanation | null} [explanation]
 *
 * @typedef {{ title: string, detail: string, code: string, status: number, request_id?: string | null }} ProblemDetails
 *
 * @typedef {object} VersionState
 * @property {string} version
 * @property {string} state
 * @property {string | null} problem
 * @property {number | null} golden_difference
 *
 * @typedef {object} ModelSummary
 * @property {string} name
 * @property {"model" | "head"} kind
 * @property {string} state
 * @property {string | null} version
 * @property {string | null} pinned
 * @property {string | null} problem
 * @property {string | null} architecture
 * @property {number | null} labels
 * @property {VersionState[]} versions
 *
 * @typedef {ModelSummary & { spec: any }} ModelCard
 *
 * @typedef {{ total: number, labels: { label: string, count: number }[] }} ExampleCounts
 *
 * @typedef {object} HeadVersion
 * @property {string} version
 * @property {string} created
 * @property {number} examples
 * @property {number} labels
 * @property {number | null} accuracy
 * @property {number | null} ece
 * @property {string[]} warnings
 * @property {string} state
 *
 * @typedef {object} HeadCard
 * @property {string} name
 * @property {"untaught" | "ready" | "failed"} state
 * @property {string | null} problem
 * @property {string | null} version
 * @property {string | null} pinned
 * @property {{ name: string, version: string, digest: string }} backbone
 * @property {ExampleCounts} examples
 * @property {boolean} changed_since_fit
 * @property {HeadVersion[]} versions
 *
 * @typedef {{ index: number, id: string, label: string, given?: string, name?: string }} Placed
 *
 * @typedef {object} Added
 * @property {Placed[]} added
 * @property {Placed[]} duplicates
 * @property {Placed[]} conflicts
 * @property {{ index: number, name?: string, error: ProblemDetails }[]} errors
 * @property {ExampleCounts} examples
 *
 * @typedef {object} Report of a fit
 * @property {number} examples
 * @property {number | null} folds
 * @property {number} validated
 * @property {number | null} accuracy
 * @property {number | null} ece
 * @property {{ label: string, examples: number, accuracy: number | null }[]} classes
 * @property {number[][] | null} confusion `[true][given]`
 * @property {[number, number, number][]} reliability confidence, accuracy, examples
 * @property {string[]} warnings
 */

export {};
