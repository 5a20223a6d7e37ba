// SPDX-License-Identifier: Apache-2.0
// A watch on any prefix: changes as they come, and why a key went.
//
// Laws
// - Nothing is missed while the connection is lost or the page is hidden: the watch goes on behind the last revision seen.
//   Where history was compacted meanwhile, a line says so.
// - The page keeps the newest changes within bounds of number and bytes; the export has all that it keeps, whole.

import { ApiError, follow } from "../api.js";
import { choice, h, later, note, replace, setText } from "../dom.js";
import { feed } from "../feed.js";
import { Grid } from "../grid.js";
import { rangeOf } from "../kv.js";
import { keyHref, leaseLink } from "../parts.js";
import { bytesOf, clockTime, decode, fromBase64, idHex, plain, shown } from "../text.js";
import { t, word } from "../words.js";

const EVENTS_MAX = 10_000;
const CHARS_MAX = 32 * 1024 * 1024; // of base64
const PREVIEW = 120;
const KINDS = { put: word("put"), create: word("created"), delete: word("deleted"), gap: word("gap") };

const kept = { prefix: "", from: "", filter: "", kind: "all" };

export function liveView(root) {
  let events = []; // oldest first
  let chars = 0;
  let seen = []; // newest first, those that fit the filter
  let paused = false;
  let waiting = 0;
  let next = null; // the revision that the watch goes on from
  let liveFrom = null; // events after this revision came while the lease events were followed
  let end = () => {};
  const reasons = new Map(); // revision -> the lease event that deleted its keys

  const prefix = h("input", { type: "search", spellcheck: "false", autocapitalize: "none", placeholder: t("Keys that begin with…"), "aria-label": t("Keys that begin with…"), props: { value: kept.prefix } });
  const from = h("input", { type: "text", inputmode: "numeric", pattern: "[0-9]*", placeholder: t("now"), "aria-label": t("From revision"), class: "short", props: { value: kept.from } });
  const filter = h("input", { type: "text", spellcheck: "false", placeholder: t("Only with this text"), "aria-label": t("Only with this text"), props: { value: kept.filter } });
  const state = h("span", { class: "live-state" });
  const total = h("span", { class: "total", role: "status" });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    setText(pause, paused ? t("Go on") : t("Pause"));
    waiting = 0;
    draw();
  } }, t("Pause"));

  const grid = new Grid({
    label: t("Changes"),
    kind: "live-grid",
    row: (number) => seen[number],
    onopen: (each) => each.key && (location.hash = keyHref(each.key)),
    columns: [
      { key: "at", label: t("Time"), class: "c-time", fill: (cell, each) => setText(cell, clockTime(each.at)) },
      { key: "kind", label: t("What"), class: "c-kind", make: (cell) => cell.append(h("span", {})), fill: (cell, each) => {
        cell.firstChild.className = `badge ${each.kind}`;
        setText(cell.firstChild, t(KINDS[each.kind]));
      } },
      { key: "key", label: t("Key"), class: "c-key mono", fill: once((cell, each) => replace(cell, each.key ? shown(each.keyBytes) : t("Changes were compacted before they could be read.")), "key") },
      { key: "value", label: t("Value, or why it went"), class: "c-value mono", fill: fillValue },
      { key: "lease", label: t("Lease"), class: "c-lease", fill: once((cell, each) => replace(cell, each.lease ? leaseLink(each.lease) : ""), "lease") },
      { key: "revision", label: t("Revision"), class: "c-revision num", fill: (cell, each) => setText(cell, each.revision) },
    ],
  });

  // Fills a cell only when the row in it is another one.
  function once(fill) {
    return (cell, each) => {
      if (cell.shows === each) return;
      cell.shows = each;
      fill(cell, each);
    };
  }

  function why(each) {
    const found = reasons.get(each.revision);
    if (found?.type === "EXPIRED") return t("lease {id} expired", { id: idHex(found.id) });
    if (found?.type === "REVOKED") return t("lease {id} was revoked", { id: idHex(found.id) });
    if (each.lease && !each.followed) return t("deleted, or its lease ended");
    return t("deleted");
  }

  function fillValue(cell, each) {
    if (each.kind === "delete") {
      cell.shows = each;
      const text = why(each);
      if (cell.firstChild?.className !== "why" || cell.textContent !== text) replace(cell, h("span", { class: "why" }, text));
    } else if (cell.shows !== each) {
      cell.shows = each;
      replace(cell, each.kind === "gap" ? "" : shown(fromBase64(each.value.slice(0, PREVIEW * 4)).subarray(0, PREVIEW)));
    }
  }

  function fits(each) {
    if (kept.kind !== "all" && each.kind !== kept.kind && !(kept.kind === "put" && each.kind === "create")) return false;
    if (!kept.filter) return true;
    each.text ??= `${each.key ? plain(each.keyBytes) : ""} ${each.kind === "delete" ? "" : plain(fromBase64(each.value.slice(0, 4096)))}`;
    return each.text.includes(kept.filter);
  }

  function draw() {
    seen = events.filter(fits).reverse();
    grid.setTotal(seen.length, t("Nothing has changed yet."));
    drawTotal();
  }

  const drawTotal = () => setText(total, `${t("{n} events", { n: seen.length })}${paused && waiting ? ` · ${t("{n} more while paused", { n: waiting })}` : ""}`);

  function take(result) {
    if (result.canceled) {
      if (result.compact_revision) {
        next = result.compact_revision;
        add([{ kind: "gap", at: Date.now(), key: "", value: "", lease: "", revision: next }]);
        throw new ApiError("offline", "compacted");
      }
      throw new ApiError(/permission denied/.test(result.cancel_reason ?? "") ? 7 : 3, result.cancel_reason ?? "");
    }
    if (result.created) {
      next ??= (BigInt(result.header.revision) + 1n).toString();
      if (feed.state === "live") liveFrom ??= BigInt(result.header.revision);
    }
    const at = Date.now();
    const found = (result.events ?? []).map((event) => {
      const deleted = event.type === "DELETE";
      const { kv } = event;
      next = (BigInt(kv.mod_revision) + 1n).toString();
      return {
        kind: deleted ? "delete" : kv.version === "1" ? "create" : "put",
        at, key: kv.key, keyBytes: fromBase64(kv.key), value: deleted ? "" : kv.value ?? "", revision: kv.mod_revision,
        lease: (deleted ? event.prev_kv?.lease : kv.lease) ?? "",
        previous: event.prev_kv,
        followed: liveFrom !== null && BigInt(kv.mod_revision) > liveFrom,
      };
    });
    if (found.length) add(found);
  }

  function add(found) {
    events.push(...found);
    for (const each of found) chars += each.value.length;
    while (events.length > EVENTS_MAX || (chars > CHARS_MAX && events.length > 1)) chars -= events.shift().value.length;
    if (paused) {
      waiting += found.length;
      drawTotal();
    } else soon();
  }
  let frame = 0;
  const soon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (!paused) draw();
    });
  };

  function begin() {
    end();
    events = [];
    chars = 0;
    liveFrom = null;
    next = /^[1-9]\d*$/.test(kept.from) ? kept.from : null;
    draw();
    end = follow("watch", {
      request: () => ({ create_request: { ...rangeOf(bytesOf(kept.prefix)), prev_kv: true, ...(next ? { start_revision: next } : {}) } }),
      onresult: take,
      onstate: (now, error) => {
        state.dataset.state = now;
        setText(state, { live: t("live"), lost: t("reconnecting…"), denied: t("not allowed") }[now]);
        if (now === "denied") note(error.text, "bad");
        if (now === "lost") liveFrom = null;
      },
    });
  }

  // Events as lines of JSON, as `lessor watch -w json` names their parts.
  function save() {
    const lines = events.filter((each) => each.key).map((each) => JSON.stringify({
      type: each.kind === "delete" ? "DELETE" : "PUT", time: new Date(each.at).toISOString(), mod_revision: each.revision,
      key: each.key, key_text: decode(each.keyBytes), value: each.value, lease: each.lease || undefined,
      why: each.kind === "delete" ? reasons.get(each.revision)?.type.toLowerCase() ?? "deleted" : undefined,
    }));
    const url = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/jsonl" }));
    h("a", { href: url, download: "events.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  const onlease = (event) => {
    for (const each of event.detail) if (each.revision !== "0") reasons.set(each.revision, each);
    if (reasons.size > EVENTS_MAX) for (const each of [...reasons.keys()].slice(0, EVENTS_MAX / 2)) reasons.delete(each);
    grid.draw();
  };
  onlease({ detail: feed.events });
  feed.addEventListener("events", onlease);
  prefix.addEventListener("input", later(300, () => {
    kept.prefix = prefix.value;
    begin();
  }));
  from.addEventListener("change", () => {
    kept.from = from.value.trim();
    begin();
  });
  filter.addEventListener("input", later(150, () => {
    kept.filter = filter.value;
    draw();
  }));

  replace(root,
    h("div", { class: "view-head" }, h("h1", {}, t("Live")), total, state,
      h("span", { class: "actions" }, pause, h("button", { type: "button", onclick: () => {
        events = [];
        chars = 0;
        draw();
      } }, t("Clear")), h("button", { type: "button", onclick: save }, t("Export")))),
    h("div", { class: "tools" }, prefix, h("label", { class: "inline" }, t("From revision"), from), filter,
      choice(t("What"), [["all", t("All")], ["put", t("put")], ["delete", t("deleted")]], kept.kind, (kind) => {
        kept.kind = kind;
        draw();
      })),
    h("div", { class: "panel fill" }, grid.element));
  begin();
  return () => {
    end();
    grid.destroy();
    feed.removeEventListener("events", onlease);
  };
}
