// SPDX-License-Identifier: Apache-2.0
// The leases of a list, page after page as they are wanted, and kept fresh where they are looked at.
//
// Laws
// - Nothing is asked for that nobody looks at: pages are read as far as the table is scrolled, and the part that is seen
//   is read again from time to time. The longer that takes, the more seldom: a list costs the server a look at each lease.
// - Times are the server's: a row keeps the instant, on the page's own clock, at which its lease ends.

import { call } from "./api.js";
import { prefixEnd } from "./text.js";

const PAGE = 250;
const PAGE_MAX = 10_000;
const REFRESH_MS_MIN = 2_000;
const REFRESH_MS_MAX = 30_000;
const COST = 40; // a request may take one part in so many of the time

export class LeaseRows {
  constructor({ prefix, remainingMax, order, onchange }) {
    Object.assign(this, { prefix, remainingMax, order, onchange });
    this.rows = [];
    this.byId = new Map();
    this.next = ""; // the token that leads on behind the last known row; null: there is nothing behind it
    this.marks = [[0, ""]]; // [number of a row, the token that leads there], ascending: where a refresh can begin
    this.leaseCount = 0;
    this.busy = null; // the reading that is under way: one at a time changes the rows
    this.wanted = 0; // how many rows shall be known
    this.control = new AbortController();
  }

  end() {
    this.control.abort();
  }

  get complete() {
    return this.next === null;
  }

  get filtered() {
    return this.prefix.length > 0 || this.remainingMax > 0;
  }

  /** How many rows the table has: those that are known, or as many as there are leases, all of which will be. */
  get total() {
    if (this.complete) return this.rows.length;
    return this.filtered ? this.rows.length + 1 : Math.max(this.rows.length + 1, this.leaseCount);
  }

  async #ask(limit, token) {
    const began = performance.now();
    const body = { limit, keys_limit: 3, order: this.order, remaining_ms_max: String(this.remainingMax) };
    if (this.prefix) body.key_prefix = this.prefix;
    if (token) body.page_token = token;
    const found = await call("lessor/leases/list", body, { signal: this.control.signal });
    const now = performance.now();
    this.leaseCount = Number(found.lease_count ?? 0);
    this.tookMs = now - began;
    const leases = (found.leases ?? []).map((lease) => this.#take(lease, began, now));
    if (this.byId.size > 2 * this.rows.length + PAGE_MAX * 2) this.byId = new Map(this.rows.map((row) => [row.id, row])); // forgets those that ended unseen
    return { leases, next: found.next_page_token ?? "" };
  }

  /** The server has looked at the lease between `began` and `now`. */
  #take(lease, began, now) {
    const ttl = Number(lease.TTL);
    const left = Number(lease.remaining_ms ?? 0);
    const ends = now + left;
    let row = this.byId.get(lease.ID);
    if (!row) {
      row = { id: lease.ID, ttl, ends, seen: 0, lowest: null, renewedAt: 0, gone: "" };
      this.byId.set(lease.ID, row);
    } else if (began + left > row.ends + 500) {
      // It ends later than it would have, however slow the answer was: it was renewed since the page looked last.
      row.seen++;
      const share = Math.max(0, row.ends - now) / 1000 / row.ttl;
      row.lowest = row.lowest === null ? share : Math.min(row.lowest, share);
      row.renewedAt = ends - ttl * 1000;
    }
    row.ends = ends;
    row.keys = Number(lease.key_count ?? 0);
    row.names = lease.keys ?? [];
    return row;
  }

  // Runs `read` when no other one is under way.
  async #alone(read) {
    while (this.busy) await this.busy.catch(() => {});
    this.busy = read();
    try {
      return await this.busy;
    } finally {
      this.busy = null;
    }
  }

  /** Reads on until so many rows are known. Rejects with the error of a call. */
  async upTo(number) {
    const reading = this.wanted > 0;
    this.wanted = Math.max(this.wanted, number + 1);
    if (reading) return;
    try {
      while (!this.complete && this.rows.length < this.wanted) await this.#alone(() => this.#readOn());
    } finally {
      this.wanted = 0;
    }
  }

  async #readOn() {
    const missing = this.wanted - this.rows.length;
    const { leases, next } = await this.#ask(missing > 4 * PAGE ? PAGE_MAX : PAGE, this.next);
    const known = new Set(leases.map((row) => row.id));
    if (this.order !== "ID") this.rows = this.rows.filter((row) => !known.has(row.id)); // moved down meanwhile
    this.rows.push(...leases);
    this.next = next || null;
    if (next && this.order === "ID") this.marks.push([this.rows.length, next]);
    this.onchange();
  }

  /** Reads the rows again that are seen. Returns after how many ms to do so again. */
  async refresh(first, last) {
    if (this.wanted) return REFRESH_MS_MIN / 4; // rows are on their way, newer than any
    if (this.order !== "ID" && last >= PAGE_MAX) return REFRESH_MS_MAX; // in such an order only from the top
    const known = Math.max(0, this.rows.length - 1);
    await this.#alone(() => this.#refreshed(Math.min(first, known), Math.min(last, known)));
    this.onchange();
    return Math.min(REFRESH_MS_MAX, Math.max(REFRESH_MS_MIN, this.tookMs * COST));
  }

  async #refreshed(first, last) {
    let [number, token] = this.marks.findLast(([at]) => at <= first) ?? [0, ""];
    if (this.order === "ID" && first - number > 2 * PAGE) {
      number += await this.#again(number, token, first - number);
      [number, token] = this.marks.findLast(([at]) => at <= number);
    }
    await this.#again(number, token, Math.min(PAGE_MAX, Math.max(PAGE, last - number + 1)));
  }

  // Reads so many rows again that follow a token, in the place of those from `number` on. Returns how many came.
  async #again(number, token, limit) {
    const { leases, next } = await this.#ask(limit, token);
    const known = new Set(leases.map((row) => row.id));
    const before = this.rows.slice(0, number).filter((row) => !known.has(row.id));
    const behind = next ? this.#behind(this.rows.slice(number), leases, known) : [];
    const shift = before.length + leases.length + behind.length - this.rows.length;
    const end = before.length + leases.length;
    this.rows = [...before, ...leases, ...behind];
    if (!next) this.next = null;
    else if (!behind.length) this.next = next;
    if (this.order === "ID") {
      const later = behind.length ? this.marks.map(([at, each]) => [at + shift, each]).filter(([at]) => at > end) : [];
      this.marks = [...this.marks.filter(([at]) => at <= number), ...(next && leases.length ? [[end, next]] : []), ...later];
    }
    return leases.length;
  }

  // Of the rows from there on, those that come behind the ones that were read.
  #behind(rest, leases, known) {
    if (this.order !== "ID") return rest.slice(leases.length).filter((row) => !known.has(row.id));
    if (!leases.length) return rest;
    const lastId = BigInt(leases.at(-1).id);
    const at = rest.findIndex((row) => BigInt(row.id) > lastId);
    return at < 0 ? [] : rest.slice(at);
  }

  /** An event of the feed: rows of leases that have ended are marked, and leave with the next reading. */
  ended(id, how) {
    const row = this.byId.get(id);
    if (!row) return;
    row.gone = how;
    this.byId.delete(id);
  }
}

/** All leases with a key that begins with these bytes hold keys in this range. */
export const rangeOf = (prefix) => ({ key: prefix, end: prefixEnd(prefix) });
