// Many requests, a few at a time, patient with a station that is busy or away.

import { sleep } from "./dom.js";

const PATIENCE = 6; // attempts

/** Random bits as hex: an Idempotency-Key. (crypto.randomUUID exists over https only.) */
export const randomKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Repeat `work` while it fails in passing; waits as long as the station says. */
export async function patiently(work, signal) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await work();
    } catch (error) {
      if (!error.passing || attempt === PATIENCE) throw error;
      await sleep(1000 * (error.retryAfter ?? Math.min(2 ** attempt, 10)), signal);
    }
  }
}

/** Tasks wait in a line; `width` of them run at once. */
export class Pool {
  constructor(width = 2) {
    this.width = width;
    this.running = 0;
    this.line = [];
  }

  /** `task` handles its own failures. */
  add(task) {
    this.line.push(task);
    this.next();
  }

  clear() {
    return this.line.splice(0);
  }

  next() {
    while (this.running < this.width && this.line.length) {
      this.running += 1;
      const task = this.line.shift();
      Promise.resolve(task())
        .catch(console.error)
        .finally(() => {
          this.running -= 1;
          this.next();
        });
    }
  }
}
