// Requests for many rows: a few at a time, and a pause of all of them while the server is full or away.

import { json } from "./api.js";
import { seconds } from "./dom.js";

const AT_ONCE = 4;
const TRIES = 30;
const GIVE_UP_S = 600;
const LONGEST_WAIT_S = 30;
const AWAY = {
  unreachable: "The server cannot be reached",
  not_ready: "The model is being loaded",
  draining: "The server is shutting down",
  http_502: "A proxy does not reach the server",
  http_503: "A proxy does not reach the server",
  http_504: "A proxy does not reach the server",
};

/**
 * Answers rows one by one; `onRow` is told of each row, and `onPause` of each pause, whose reason is `why`.
 *
 * A run that cannot go on stops with the reason in `ended`, and the rest of its rows stay as they are.
 */
export class Runner {
  constructor({ bodyOf, onRow, onPause }) {
    Object.assign(this, { bodyOf, onRow, onPause });
    this.stopping = new AbortController();
    this.pausedUntil = 0;
    this.awaySince = null;
    this.ended = null;
  }

  /** Answer the rows; each gets `answer` or `error`. */
  async run(rows) {
    const waiting = [...rows];
    const work = async () => {
      while (waiting.length > 0 && !this.stopping.signal.aborted) await this.answer(waiting.shift());
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  }

  /** Whole seconds until the run goes on; 0 outside a pause. */
  get waitS() {
    return this.stopping.signal.aborted ? 0 : Math.max(0, Math.ceil((this.pausedUntil - Date.now()) / 1000));
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
        if (error.status === 401) return this.end(error.message);
        if (error.code in AWAY) {
          this.waitForServer(error);
          continue;
        }
        if (typeof error.retryAfterS === "number" && tries < TRIES) {
          this.awaySince = null;
          this.pause(error.retryAfterS, "The server is full");
          continue;
        }
        row.error = error.message;
      }
      this.awaySince = null;
      this.onRow(row);
      return;
    }
  }

  /** Pause for as long as the server has been away already, so that the pauses double. */
  waitForServer({ code, message }) {
    this.awaySince ??= Date.now();
    const awayS = (Date.now() - this.awaySince) / 1000;
    if (awayS > GIVE_UP_S) this.end(message);
    else this.pause(Math.min(LONGEST_WAIT_S, Math.max(1, awayS)), AWAY[code]);
  }

  pause(waitS, why) {
    this.pausedUntil = Math.max(this.pausedUntil, Date.now() + waitS * 1000);
    this.why = why;
    this.onPause();
  }

  end(why) {
    this.ended ??= why;
    this.stop();
  }
}
