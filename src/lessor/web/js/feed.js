// SPDX-License-Identifier: Apache-2.0
// The grants and ends of all leases since the page was opened: one stream, which all views share.

import { follow } from "./api.js";

const KEPT_MAX = 5000;

class Feed extends EventTarget {
  /** @type {{type: string, id: string, ttl: number, keys: number, revision: string, at: number}[]} oldest first */
  events = [];
  state = "lost"; // "live", "lost" or "denied"
  #end = null;

  start() {
    this.#end ??= follow("lessor/leases/watch", {
      request: () => ({}),
      onresult: (result) => this.#take(result.events ?? []),
      onstate: (state) => {
        this.state = state;
        this.dispatchEvent(new CustomEvent("state", { detail: state }));
      },
    });
  }

  stop() {
    this.#end?.();
    this.#end = null;
    this.state = "lost";
  }

  #take(found) {
    if (!found.length) return;
    const at = Date.now();
    const fresh = found.map((each) => ({
      type: each.type ?? "GRANTED",
      id: each.ID,
      ttl: Number(each.TTL ?? 0),
      keys: Number(each.key_count ?? 0),
      revision: each.revision ?? "0",
      at,
    }));
    this.events.push(...fresh);
    if (this.events.length > KEPT_MAX * 1.2) this.events.splice(0, this.events.length - KEPT_MAX);
    this.dispatchEvent(new CustomEvent("events", { detail: fresh }));
  }
}

export const feed = new Feed();
