/**
 * Examples on their way to a head, one request after the other, a few images in each.
 *
 * @import { Added } from "./types.js"
 */

import * as api from "./api.js";
import { shares } from "./ask.js";

const AT_ONCE = 8; // images in a request: few, so that progress shows

/**
 * @typedef {object} Listener
 * @property {(label: string, done: number, total: number) => void} onProgress done and total are 0 when all is sent
 * @property {(label: string, files: File[], added: Added) => void} onAdded
 * @property {(label: string, error: unknown, unsent: number) => void} onError what was queued of that label is given up
 */

export class Uploads {
  #head;
  #listener;
  /** @type {Map<string, { waiting: File[], done: number }>} */
  #queues = new Map();
  #busy = false;

  /** @param {string} head @param {Listener} listener */
  constructor(head, listener) {
    this.#head = head;
    this.#listener = listener;
  }

  /** @param {string} label @param {File[]} files */
  add(label, files) {
    const queue = this.#queues.get(label) ?? { waiting: [], done: 0 };
    queue.waiting.push(...files);
    this.#queues.set(label, queue);
    this.#listener.onProgress(label, queue.done, queue.done + queue.waiting.length);
    if (!this.#busy) void this.#send();
  }

  async #send() {
    this.#busy = true;
    for (let next = this.#queues.entries().next().value; next; next = this.#queues.entries().next().value) {
      const [label, queue] = next;
      const [share] = shares(queue.waiting, AT_ONCE);
      try {
        const added = await api.addExamples(this.#head, label, share);
        queue.waiting.splice(0, share.length);
        queue.done += share.length;
        this.#listener.onAdded(label, share, added);
      } catch (error) {
        this.#listener.onError(label, error, queue.waiting.length);
        queue.waiting = [];
      }
      if (queue.waiting.length) {
        this.#listener.onProgress(label, queue.done, queue.done + queue.waiting.length);
      } else {
        this.#queues.delete(label);
        this.#listener.onProgress(label, 0, 0);
      }
    }
    this.#busy = false;
  }
}
