// SPDX-License-Identifier: Apache-2.0
// Pieces that several views show: bars, keys, values, the word for how a lease ended.

import { call } from "./api.js";
import { ask, choice, copyButton, h, note, replace, setText } from "./dom.js";
import { jsonTree } from "./json-view.js";
import { decode, duration, fromBase64, hexDump, idHex, plain, shown, size, toUrl } from "./text.js";
import { t, word } from "./words.js";

export const leaseHref = (id) => `#/lease/${idHex(id)}`;
export const keyHref = (key64) => `#/key/${toUrl(key64)}`;

/** A link to a lease, by its hexadecimal id. */
export const leaseLink = (id) => h("a", { class: "mono", href: leaseHref(id) }, idHex(id));

/** A link to a key, escaped. */
export const keyLink = (key64) => h("a", { class: "mono key-name", href: keyHref(key64), title: plain(fromBase64(key64)) }, shown(fromBase64(key64)));

export const HOW = { GRANTED: word("granted"), EXPIRED: word("expired"), REVOKED: word("revoked"), ENDED: word("ended") };
export const badge = (type) => h("span", { class: `badge ${type.toLowerCase()}` }, t(HOW[type]));

/** A bar of the time that is left. `fill(seconds, ttl, gone)` sets it. */
export function timeBar(cell) {
  const fill = h("span", { class: "fill" });
  const text = h("span", { class: "bar-text" });
  cell.append(h("span", { class: "bar", "aria-hidden": "true" }, fill), text);
  return (seconds, ttl, gone = "") => {
    const part = gone ? 0 : Math.max(0, Math.min(1, seconds / ttl));
    fill.style.transform = `scaleX(${part.toFixed(3)})`;
    fill.dataset.level = part < 0.15 ? "low" : part < 0.4 ? "middle" : "high";
    setText(text, gone ? t(HOW[gone]) : seconds <= 0 ? t("due") : duration(seconds));
  };
}

const SHOWN_MAX = 100_000;

/** A value as text, JSON or hex; what fits it best is chosen first. */
export function valueView(bytes) {
  const text = decode(bytes);
  const box = h("div", { class: "value", tabindex: "0", role: "region", "aria-label": t("Value") });
  const looksJson = text !== null && /^\s*[[{]/.test(text);
  const cut = bytes.length > SHOWN_MAX;
  let whole = false;
  let mode = "text";

  function draw() {
    const limit = whole ? Infinity : SHOWN_MAX;
    const seen = cut && !whole ? bytes.subarray(0, SHOWN_MAX) : bytes;
    let body;
    if (!bytes.length) body = h("p", { class: "dim" }, t("empty"));
    else if (mode === "hex") body = h("pre", {}, hexDump(bytes, limit));
    else if (mode === "json") body = jsonTree(text) ?? h("p", { class: "dim" }, t("This is not JSON."));
    else body = h("pre", {}, shown(seen, "\n\t"));
    replace(box, body, cut && !whole && mode !== "json"
      ? h("button", { type: "button", onclick: () => {
        whole = true;
        draw();
      } }, t("Show all {size}", { size: size(bytes.length) }))
      : null);
  }
  if (looksJson && jsonTree(text)) mode = "json";
  else if (text === null) mode = "hex";
  draw();
  return h("div", { class: "value-view" },
    h("div", { class: "value-head" },
      choice(t("Form"), [["text", t("Text")], ["json", "JSON"], ["hex", t("Hex")]], mode, (chosen) => {
        mode = chosen;
        draw();
      }),
      h("span", { class: "dim" }, size(bytes.length), text === null ? ` · ${t("not UTF-8")}` : ""),
      text !== null ? copyButton(t("Copy the value"), text) : null),
    box);
}

/** Asks, then revokes. Shows which keys go. Resolves to whether the lease was revoked. */
export async function revokeLease(id) {
  let keys = [];
  try {
    const found = await call("lease/timetolive", { ID: id, keys: true });
    if (found.TTL === "-1") {
      note(t("This lease has ended already."), "bad");
      return false;
    }
    keys = found.keys ?? [];
  } catch (error) {
    note(error.text, "bad");
    return false;
  }
  return ask({
    title: t("Revoke lease {id}?", { id: idHex(id) }),
    body: [
      h("p", {}, keys.length ? t("Its keys are deleted with it:") : t("It has no keys.")),
      keyList(keys),
      h("p", { class: "hint" }, t("Its owner loses it at once, and what it holds: locks, places in elections, registrations.")),
    ],
    verb: t("Revoke"),
    danger: true,
    act: async () => {
      await call("lease/revoke", { ID: id });
      note(t("Revoked."));
    },
  });
}

const LISTED_MAX = 100;
export function keyList(keys, more = 0) {
  const rest = keys.length - LISTED_MAX + more;
  return keys.length === 0 ? null : h("ul", { class: "key-list" },
    keys.slice(0, LISTED_MAX).map((key) => h("li", { class: "mono" }, shown(fromBase64(key)))),
    rest > 0 ? h("li", { class: "dim" }, t("and {n} more", { n: rest })) : null);
}
