// SPDX-License-Identifier: Apache-2.0
// Figures of the last hour: /metrics every few seconds, kept by the page. The server keeps no history of them.

import { every, page } from "./api.js";
import { word } from "./words.js";

const EVERY_MS = 5000;
const KEPT_MAX = 720; // an hour
const COMMIT = "etcd_disk_backend_commit_duration_seconds";
const LATENESS = "lessor_lease_expiry_lateness_seconds";

/** The samples of a page of metrics: a sum over labels by name, and histograms as [[bound, count], ...]. */
export function parse(text) {
  const values = new Map();
  const buckets = new Map();
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const space = line.lastIndexOf(" ");
    const value = Number(line.slice(space + 1));
    const brace = line.indexOf("{");
    const name = line.slice(0, brace < 0 ? space : brace);
    if (name.endsWith("_bucket")) {
      if (!name.startsWith(COMMIT) && !name.startsWith(LATENESS)) continue;
      const bound = Number(line.match(/le="([^"]+)"/)[1].replace("+Inf", "Infinity"));
      const base = name.slice(0, -7);
      if (!buckets.has(base)) buckets.set(base, []);
      buckets.get(base).push([bound, value]);
    } else values.set(name, (values.get(name) ?? 0) + value);
  }
  return { values, buckets };
}

/** The bound below which 99 of 100 of what came between two readings lie; null when nothing came. */
export function p99(before, after) {
  if (!before || !after) return null;
  const counts = after.map(([bound, value], at) => [bound, value - (before[at]?.[1] ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const found = counts.find(([, value]) => value >= total * 0.99);
  return Number.isFinite(found[0]) ? found[0] : counts.at(-2)[0];
}

class Samples extends EventTarget {
  /** Columns, each as long as `times`; null where nothing is known. */
  columns = { times: [], renewals: [], grants: [], expired: [], requests: [], commit: [], commit99: [], lateness: [],
    leases: [], keys: [], watchers: [], connections: [], size: [], pending: [] };
  last = null; // {values, buckets, at}
  #loop = null;

  start() {
    this.#loop ??= every(EVERY_MS, () => this.#read(), { hidden: true });
  }

  async #read() {
    const text = await page("metrics");
    if (!text) return;
    const at = Date.now() / 1000;
    const found = { ...parse(text), at };
    this.#add(this.last, found);
    this.last = found;
    this.dispatchEvent(new Event("sample"));
  }

  #add(before, now) {
    const value = (name) => now.values.get(name) ?? null;
    const seconds = before ? now.at - before.at : 0;
    const grown = (name) => (before ? now.values.get(name) - before.values.get(name) : NaN);
    const rate = (name) => {
      const more = grown(name);
      return more >= 0 && seconds > 0 ? more / seconds : null; // less than before: the server was started again
    };
    const commits = grown(COMMIT + "_count");
    const row = {
      times: now.at,
      renewals: rate("etcd_debugging_lease_renewed_total"),
      grants: rate("etcd_debugging_lease_granted_total"),
      expired: rate("etcd_debugging_server_lease_expired_total"),
      requests: rate("etcd_server_client_requests_total"),
      commit: commits > 0 ? (grown(COMMIT + "_sum") / commits) * 1000 : null,
      commit99: commits > 0 ? scaled(p99(before?.buckets.get(COMMIT), now.buckets.get(COMMIT)), 1000) : null,
      lateness: scaled(p99(before?.buckets.get(LATENESS), now.buckets.get(LATENESS)), 1000),
      leases: value("lessor_leases"),
      keys: value("etcd_debugging_mvcc_keys_total"),
      watchers: value("etcd_debugging_mvcc_watcher_total"),
      connections: value("lessor_connections"),
      size: value("etcd_mvcc_db_total_size_in_use_in_bytes"),
      pending: value("etcd_server_proposals_pending"),
    };
    for (const [name, column] of Object.entries(this.columns)) {
      column.push(row[name]);
      if (column.length > KEPT_MAX) column.shift();
    }
  }

  value(name) {
    return this.last?.values.get(name) ?? null;
  }
}

const scaled = (value, by) => (value === null ? null : value * by);

/** What an operator should see at once, as [kind, text key, values]. */
export function troubles(samples) {
  const found = [];
  const recent = (name) => samples.columns[name].slice(-3).filter((value) => value !== null);
  const late = Math.max(0, ...recent("lateness"));
  if (late > 1000) found.push(["bad", word("Leases end up to {n} ms late: they may hold locks for longer than they should."), { n: late }]);
  const commits = recent("commit");
  if (commits.length && Math.min(...commits) > 250) {
    found.push(["bad", word("A commit takes {n} ms: renewals and writes wait for the disk."), { n: Math.round(Math.min(...commits)) }]);
  }
  const used = samples.value("lessor_quota_counted_bytes");
  const quota = samples.value("etcd_server_quota_backend_bytes");
  if (quota > 0 && used / quota > 0.9) found.push(["bad", word("{n} % of the quota is used: soon writes will be refused."), { n: Math.round((used / quota) * 100) }]);
  if (samples.last && samples.value("etcd_server_has_leader") === 0) found.push(["bad", word("No server leads: leases are not renewed."), {}]);
  return found;
}

export const samples = new Samples();
