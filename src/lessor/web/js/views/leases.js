// SPDX-License-Identifier: Apache-2.0
// All leases: which is about to end, which hold what, which are renewed late.

import { every } from "../api.js";
import { choice, copy, copyButton, h, later, note, replace, setText } from "../dom.js";
import { feed } from "../feed.js";
import { Grid } from "../grid.js";
import { LeaseRows } from "../lease-rows.js";
import { badge, leaseHref, leaseLink, timeBar } from "../parts.js";
import { bytesOf, clockTime, duration, fromBase64, idHex, plain, shown, toBase64 } from "../text.js";
import { t, word } from "../words.js";

const SOON = [[0, word("any time")], [10_000, word("10 s")], [60_000, word("1 min")], [600_000, word("10 min")], [3_600_000, word("1 h")]];
const ORDER_OF = { id: "ID", left: "REMAINING", keys: "KEYS" };
const TICK_MS = 250;
const EVENTS_SHOWN = 100;
// A lease whose owner renews it with less than this part of its time left: one lost renewal, and it ends.
const LATE = 0.34;

// What stays when the view is left and come back to.
const kept = { prefix: "", soon: 0, order: "id" };

export function leasesView(root) {
  let rows;
  const filter = h("input", { type: "search", placeholder: t("Keys that begin with…"), "aria-label": t("Keys that begin with…"), spellcheck: "false", autocapitalize: "none", props: { value: kept.prefix } });
  const soon = h("select", {}, SOON.map(([ms, label]) =>
    h("option", { value: ms, props: { selected: ms === kept.soon } }, t(label))));
  const total = h("span", { class: "total", role: "status" });
  const log = h("ol", { class: "events scroll", tabindex: "0", "aria-labelledby": "events-title" });

  const grid = new Grid({
    label: t("Leases"),
    kind: "leases-grid",
    row: (number) => rows?.rows[number],
    onopen: (row) => (location.hash = leaseHref(row.id)),
    onneed: (first, last) => need(last),
    onkey: (key, row) => {
      if (!row || (key !== "c" && key !== "d")) return false;
      copy(key === "c" ? idHex(row.id) : row.id);
      return true;
    },
    onsort: (key) => choose({ order: key }),
    columns: [
      { key: "id", label: t("Lease"), class: "c-id", sortable: true, make: makeId, fill: fillId },
      { key: "dec", label: t("Decimal"), class: "c-dec num", make: makeDecimal, fill: (cell, row) => {
        cell.id64 = row.id;
        setText(cell.firstChild, row.id);
      } },
      { key: "ttl", label: "TTL", class: "c-ttl num", fill: (cell, row) => setText(cell, `${row.ttl} s`) },
      { key: "left", label: t("Time left"), class: "c-left", sortable: true, make: (cell) => (cell.bar = timeBar(cell)), fill: (cell, row) => cell.bar((row.ends - performance.now()) / 1000, row.ttl, row.gone) },
      { key: "seen", label: t("Renewals seen"), class: "c-seen", fill: fillSeen },
      { key: "keys", label: t("Keys"), class: "c-keys num", sortable: true, fill: (cell, row) => setText(cell, String(row.keys)) },
      { key: "names", label: t("First keys"), class: "c-names mono", fill: fillNames },
    ],
  });

  const need = (last) => {
    if (rows?.rows.length && !rows.complete && last >= rows.rows.length - 20) rows.upTo(last + 20).catch(failed);
  };

  function failed(error) {
    if (error.name === "AbortError" || error.offline) return;
    note(error.text ?? String(error), "bad");
  }

  function changed() {
    grid.setTotal(rows.total, rows.complete ? (rows.filtered ? t("No lease fits the filter.") : t("There are no leases.")) : t("Loading…"));
    const { leaseCount } = rows;
    setText(total, rows.filtered
      ? `${t("{n} leases", { n: rows.rows.length })}${rows.complete ? "" : "+"} · ${t("{n} in all", { n: leaseCount })}`
      : t("{n} leases", { n: leaseCount }));
  }

  function choose(changes) {
    Object.assign(kept, changes);
    rows?.end();
    rows = new LeaseRows({
      prefix: toBase64(bytesOf(kept.prefix)), remainingMax: kept.soon, order: ORDER_OF[kept.order], onchange: changed,
    });
    grid.sorted(kept.order, kept.order === "keys" ? "descending" : "ascending");
    grid.toTop();
    rows.upTo(50).catch(failed);
  }

  filter.addEventListener("input", later(250, () => choose({ prefix: filter.value })));
  soon.addEventListener("change", () => choose({ soon: Number(soon.value) }));

  const state = h("span", { class: "live-state" });
  const drawState = () => {
    state.dataset.state = feed.state;
    setText(state, { live: t("live"), lost: t("reconnecting…"), denied: t("events: not allowed") }[feed.state]);
  };
  const drawLog = () => replace(log, feed.events.slice(-EVENTS_SHOWN).reverse().map(eventLine),
    feed.events.length ? null : h("li", { class: "dim" }, t("None since the page was opened.")));
  const refreshSoon = later(400, () => refresher.now());
  const onevents = (event) => {
    for (const each of event.detail) if (each.type !== "GRANTED") rows.ended(each.id, each.type);
    drawLog();
    refreshSoon();
  };
  feed.addEventListener("events", onevents);
  feed.addEventListener("state", drawState);

  replace(root,
    h("div", { class: "view-head" }, h("h1", {}, t("Leases")), total, state),
    h("div", { class: "tools" }, filter, h("label", { class: "inline" }, t("Ends within"), soon),
      h("span", { class: "inline" }, t("Order"), choice(t("Order"), [["id", "ID"], ["left", t("Time left")], ["keys", t("Keys")]], kept.order, (order) => choose({ order })))),
    h("div", { class: "split" },
      h("div", { class: "panel fill" }, grid.element),
      h("section", { class: "panel events-panel", "aria-labelledby": "events-title" }, h("h2", { id: "events-title" }, t("Granted and ended")),
        log)));
  drawState();
  drawLog();
  choose({});

  const tick = setInterval(() => document.hidden || grid.draw(), TICK_MS);
  const refresher = every(2000, async () => {
    if (!rows) return 500;
    const [first, last] = grid.range();
    return rows.refresh(Math.max(0, first), Math.max(0, last));
  });
  return () => {
    clearInterval(tick);
    refresher.stop();
    rows.end();
    grid.destroy();
    feed.removeEventListener("events", onevents);
    feed.removeEventListener("state", drawState);
  };
}

function makeId(cell) {
  cell.link = h("a", { class: "mono", tabindex: "-1" });
  const decimal = h("button", { type: "button", class: "copy-dec", tabindex: "-1", onclick: () => copy(cell.id64) }, t("dec"));
  decimal.title = t("Copy as decimal");
  cell.append(cell.link, copyButton(t("Copy as hexadecimal"), () => cell.link.textContent), decimal);
}

function fillId(cell, row) {
  const hex = idHex(row.id);
  cell.id64 = row.id;
  if (cell.link.textContent !== hex) {
    cell.link.textContent = hex;
    cell.link.setAttribute("href", leaseHref(row.id));
  }
}

function makeDecimal(cell) {
  cell.append(h("span", { class: "mono" }), copyButton(t("Copy as decimal"), () => cell.id64));
}

function fillSeen(cell, row) {
  if (!row.seen) setText(cell, "–");
  else {
    const ago = duration(Math.max(0, performance.now() - row.renewedAt) / 1000);
    setText(cell, `${row.seen} · ${t("{time} ago", { time: ago })}`);
  }
  const late = row.lowest !== null && row.lowest < LATE;
  cell.classList.toggle("late", late);
  cell.title = late ? t("Renewed when {n} % of its time was left", { n: Math.round(row.lowest * 100) }) : "";
}

function fillNames(cell, row) {
  const name = row.names.join(" ");
  if (cell.names === name) return;
  cell.names = name;
  replace(cell, row.names.map((key) => h("span", { class: "chip", title: plain(fromBase64(key)) }, shown(fromBase64(key)))));
}

function eventLine(each) {
  const more = each.type === "GRANTED" ? `TTL ${each.ttl} s` : t("{n} keys", { n: each.keys });
  return h("li", { title: more }, h("time", {}, clockTime(each.at)), badge(each.type), leaseLink(each.id));
}
