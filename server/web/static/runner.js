// Requests for many rows: a few at a time, and a pause of all of them when the server is full.

import { json } from "./api.js";
import { seconds } from "./dom.js";

const AT_ONCE = 4;
const TRIES = 30;

/** Answers rows one by one; `onRow` is told of each row, and `onPause` that `pausedUntil` has moved. */
export class Runner {
  constructor({ bodyOf, onRow, onPause }) {
    Object.assign(this, { bodyOf, onRow, onPause });
    this.stopping = new AbortController();
    this.pausedUntil = 0;
  }

  /** Answer the rows; each gets `answer` or `error`. */
  async run(rows) {
    const waiting = [...rows];
    const work = async () => {
      while (waiting.length > 0 && !this.stopping.signal.aborted) await this.answer(waiting.shift());
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  }

  stop() {
    this.stopping.abort();
  }

  async answer(row) {
    for (let tries = 1; ; tries++) {
      while (Date.now() < this.pausedUntil && !this.stopping.signal.aborted) await seconds(0.1);
      if (this.stopping.signal.aborted) return;
      try {
        row.answer = await json("v1/predict", this.bodyOf(row), { signal: this.stopping.signal });
        row.error = null;
      } catch (error) {
        if (error.name === "AbortError") return;
        const wait = error.retryAfterS;
        if (typeof wait === "number" && tries < TRIES) {
          this.pausedUntil = Math.max(this.pausedUntil, Date.now() + wait * 1000);
          this.onPause();
          continue;
        }
        row.error = error.message;
      }
      this.onRow(row);
      return;
    }
  }
}
