// What the engine does, once a second while somebody looks.

import { ApiError, events, parseEvent, request } from "./api.js";

const AGAIN_AFTER = 3000;
const SAMPLES = 90;

/**
 * Follows the live route until the signal says to stop; a lost connection is made anew.
 *
 * @param {function(object): void} onView called with each view of the engine
 * @param {function(Error|null): void} onLost called when the connection is lost
 */
export async function follow(model, onView, onLost, signal) {
  while (!signal.aborted) {
    let seen = 0;
    try {
      const query = model ? `?model=${encodeURIComponent(model)}` : "";
      const response = await request(`v1/engine/live${query}`, { signal });
      for await (const data of events(response, signal)) {
        onView(parseEvent(data));
        seen += 1;
      }
      // The server ends each view after a while; one that ends without having begun is shutting down.
      if (seen > 0) continue;
      onLost(null);
    } catch (error) {
      if (signal.aborted) return;
      onLost(error);
      if (error instanceof ApiError && [401, 403, 404].includes(error.status)) return;
    }
    await pause(AGAIN_AFTER, signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** Rates out of totals that only grow; they begin anew with another engine. */
export class Rates {
  generated = [];
  read = [];
  #before = null;

  add(view) {
    const before = this.#before;
    this.#before = view;
    if (before === null || view.totals.steps < before.totals.steps) return;
    const span = view.time - before.time;
    if (span <= 0) return;
    this.#push(this.generated, (view.totals.generation_tokens - before.totals.generation_tokens) / span);
    this.#push(this.read, (view.totals.prompt_tokens - before.totals.prompt_tokens) / span);
  }

  #push(list, value) {
    list.push(value);
    if (list.length > SAMPLES) list.shift();
  }

  /** Share of prompt tokens that the prefix cache had, all in all; null before any was looked up. */
  hitShare() {
    const totals = this.#before?.totals;
    return totals?.prefix_query_tokens ? totals.prefix_hit_tokens / totals.prefix_query_tokens : null;
  }
}
