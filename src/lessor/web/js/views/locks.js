// SPDX-License-Identifier: Apache-2.0
// Locks and elections: who holds, who waits in which place, on which lease.
//
// The API has no list of locks. A contender's key is NAME/LEASE, with the lease in hexadecimal, and hangs on that lease;
// whose was made first holds. So the leases are listed with their keys, and the keys of each name are read in the order
// in which they were made.

import { call, every } from "../api.js";
import { h, later, note, replace, setText } from "../dom.js";
import { feed } from "../feed.js";
import { keyHref, leaseLink, revokeLease, timeBar } from "../parts.js";
import { may } from "../session.js";
import { bytesOf, decode, duration, fromBase64, idFromHex, idHex, plain, prefixEnd, shown, toBase64 } from "../text.js";
import { t } from "../words.js";

const LEASES_PER_PAGE = 1000;
const LEASES_MAX = 10_000; // looked at; a filter finds those beyond
const NAMES_SHOWN = 20; // each is two operations of a txn
const WAITING_SHOWN = 20;
const COST = 20; // a look may take one part in so many of the time
const SLASH = 47;

// When this page first saw a contender in its place: key and revision -> instant.
const since = new Map();
const kept = { prefix: "" };

// The name that a key contends for, if its end is the hexadecimal id of its lease.
function nameOf(key, leaseId) {
  const slash = key.lastIndexOf(SLASH);
  return slash > 0 && decode(key.slice(slash + 1)) === idHex(leaseId) ? key.slice(0, slash) : null;
}

/** All names that keys contend for: base64 of the name -> {name, leases}. */
async function namesOf(prefix, signal) {
  const names = new Map();
  let token = "";
  let looked = 0;
  do {
    const body = { limit: LEASES_PER_PAGE, keys_limit: 20, order: "KEYS" };
    if (prefix) body.key_prefix = toBase64(bytesOf(prefix));
    if (token) body.page_token = token;
    const found = await call("lessor/leases/list", body, { signal });
    token = found.next_page_token ?? "";
    for (const lease of found.leases ?? []) {
      looked++;
      if (!Number(lease.key_count)) return { names, all: true };
      for (const key64 of lease.keys ?? []) {
        const name = nameOf(fromBase64(key64), lease.ID);
        if (!name) continue;
        const name64 = toBase64(name);
        if (!names.has(name64)) names.set(name64, { name, leases: new Map() });
        names.get(name64).leases.set(lease.ID, { ends: performance.now() + Number(lease.remaining_ms ?? 0), ttl: Number(lease.TTL) });
      }
    }
  } while (token && looked < LEASES_MAX);
  return { names, all: !token };
}

/** The contenders of each name in their order, with the value of the first. */
async function linesOf(found, signal) {
  const ranges = found.flatMap(({ name }) => {
    const prefix = Uint8Array.of(...name, SLASH);
    const range = { key: toBase64(prefix), range_end: toBase64(prefixEnd(prefix)), sort_target: "CREATE", sort_order: "ASCEND" };
    return [{ request_range: { ...range, limit: "1" } }, { request_range: { ...range, keys_only: true, limit: String(WAITING_SHOWN) } }];
  });
  if (!ranges.length) return [];
  const { responses } = await call("kv/txn", { success: ranges }, { signal });
  return found.map((each, at) => {
    const first = responses[2 * at].response_range.kvs ?? [];
    const all = responses[2 * at + 1].response_range;
    return { ...each, value: first[0]?.value ?? "", kvs: all.kvs ?? [], count: Number(all.count ?? 0) };
  });
}

export function locksView(root) {
  const control = new AbortController();
  const filter = h("input", { type: "search", spellcheck: "false", autocapitalize: "none", placeholder: t("Names that begin with…"), "aria-label": t("Names that begin with…"), props: { value: kept.prefix } });
  const total = h("span", { class: "total", role: "status" });
  const list = h("div", { class: "lines" });
  const cards = new Map(); // base64 of the name -> card
  let shownMax = NAMES_SHOWN;
  let bars = [];

  async function look() {
    const began = performance.now();
    const { names, all } = await namesOf(kept.prefix, control.signal);
    const ordered = [...names.values()].sort((a, b) => b.leases.size - a.leases.size || (plain(a.name) < plain(b.name) ? -1 : 1));
    const lines = [];
    for (let at = 0; at < Math.min(shownMax, ordered.length); at += NAMES_SHOWN) {
      lines.push(...(await linesOf(ordered.slice(at, Math.min(at + NAMES_SHOWN, shownMax)), control.signal)));
    }
    bars = [];
    const elements = lines.filter((line) => line.kvs.length).map(card);
    for (const each of [...cards.keys()]) if (!lines.some((line) => toBase64(line.name) === each)) cards.delete(each);
    const more = ordered.length > shownMax
      ? h("button", { type: "button", class: "more", onclick: () => {
        shownMax += NAMES_SHOWN * 2;
        loop.now();
      } }, t("Show more"))
      : null;
    const focused = document.activeElement?.dataset?.what;
    replace(list, elements.length ? [...elements, more] : h("p", { class: "panel pad dim" }, t("Nobody holds a lock or leads an election.")));
    if (focused) [...list.querySelectorAll("[data-what]")].find((each) => each.dataset.what === focused)?.focus();
    setText(total, `${t("Names: {n}", { n: ordered.length })}${all ? "" : ` · ${t("only some leases were looked at: use the filter")}`}`);
    draw();
    return Math.min(30_000, Math.max(2000, (performance.now() - began) * COST));
  }

  function card({ name, kvs, count, value, leases }) {
    const election = Boolean(value);
    const title = h("h2", { class: "mono" }, shown(name));
    const rows = kvs.map((kv, place) => contender(kv, place, leases));
    return h("section", { class: "panel line" },
      h("div", { class: "line-head" }, title, h("span", { class: "badge plain" }, election ? t("election") : t("lock")),
        h("span", { class: "dim" }, t("{n} waiting", { n: count - 1 }))),
      election ? h("p", { class: "said" }, h("span", { class: "dim" }, t("says")), " ", shown(fromBase64(value).subarray(0, 200))) : null,
      h("table", { class: "contenders" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("Place")), h("th", { scope: "col" }, t("Lease")),
        h("th", { scope: "col" }, t("Time left")), h("th", { scope: "col", class: "c-since" }, t("Since")), h("th", { scope: "col" }, h("span", { class: "away" }, t("Actions"))))),
      h("tbody", {}, rows)),
      count > kvs.length ? h("p", { class: "dim pad" }, t("and {n} more", { n: count - kvs.length })) : null);
  }

  function contender(kv, place, leases) {
    // Keys that are read without their values come without their leases too: the key's end names it.
    const id = idFromHex((decode(fromBase64(kv.key)) ?? "").split("/").at(-1));
    const lease = leases.get(id);
    const seenAs = `${kv.key} ${kv.create_revision} ${place === 0}`;
    if (!since.has(seenAs)) since.set(seenAs, Date.now());
    const cell = h("td", { class: "c-left" });
    const bar = timeBar(cell);
    const sinceText = h("span", {});
    if (lease) bars.push(() => bar((lease.ends - performance.now()) / 1000, lease.ttl));
    bars.push(() => setText(sinceText, t("revision {revision}, seen here for {time}", { revision: kv.create_revision, time: duration((Date.now() - since.get(seenAs)) / 1000) })));
    const allowed = id !== null && may("write", fromBase64(kv.key));
    return h("tr", { class: place ? "" : "holder" },
      h("td", {}, place ? t("waits, place {place}", { place: String(place) }) : h("strong", {}, t("holds"))),
      h("td", {}, id !== null ? leaseLink(id) : "–", " ", h("a", { class: "small", href: keyHref(kv.key) }, t("key"))),
      cell, h("td", { class: "c-since dim" }, sinceText),
      h("td", { class: "right" }, allowed ? h("button", { type: "button", class: "danger small-button", "data-what": id, onclick: () => revokeLease(id).then((done) => done && loop.now()) }, t("Revoke lease…")) : null));
  }

  const draw = () => bars.forEach((each) => each());
  const failed = (error) => {
    if (error.name !== "AbortError" && !error.offline) replace(list, h("p", { class: "problem pad", role: "alert" }, error.text ?? String(error)));
  };
  filter.addEventListener("input", later(250, () => {
    kept.prefix = filter.value;
    loop.now();
  }));
  const soon = later(300, () => loop.now());
  feed.addEventListener("events", soon);
  replace(root, h("div", { class: "view-head" }, h("h1", {}, t("Locks and elections")), total), h("div", { class: "tools" }, filter), list);
  const loop = every(2000, () => look().catch(failed));
  const tick = setInterval(draw, 250);
  return () => {
    control.abort();
    loop.stop();
    clearInterval(tick);
    feed.removeEventListener("events", soon);
  };
}
