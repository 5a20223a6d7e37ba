// SPDX-License-Identifier: Apache-2.0
// One lease: its time, its keys, what has happened to it since the page was opened; renew it once, or end it.

import { call, every } from "../api.js";
import { ask, copy, h, note, replace, setText } from "../dom.js";
import { feed } from "../feed.js";
import { badge, keyLink, revokeLease, timeBar } from "../parts.js";
import { may } from "../session.js";
import { clockTime, duration, fromBase64, idFromHex, idHex } from "../text.js";
import { t } from "../words.js";

const KEYS_SHOWN = 500;

export function leaseView(root, [hex]) {
  const id = idFromHex(hex ?? "");
  if (id === null) {
    replace(root, h("h1", {}, t("Lease")), h("p", {}, t("This is no lease ID.")));
    return;
  }
  const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
  const barCell = h("div", { class: "big-bar" });
  const bar = timeBar(barCell);
  const ttl = h("span", { class: "num" }, "–");
  const keyCount = h("span", { class: "num" }, "–");
  const renewals = h("span", { class: "num" }, "0");
  const keys = h("ul", { class: "key-list links" });
  const history = h("ol", { class: "events" });
  const renewButton = h("button", { type: "button", onclick: renew }, t("Renew once"));
  const revokeButton = h("button", { type: "button", class: "danger", onclick: () => revokeLease(id).then((done) => done && loop.now()) }, t("Revoke…"));
  let ends = 0;
  let granted = 1;
  let gone = "";
  let seen = 0;
  const seenRenewals = [];
  let shownKeys = null;

  async function renew() {
    await ask({
      title: t("Renew lease {id} once?", { id: idHex(id) }),
      body: h("p", {}, t("Its full TTL starts anew. Its owner does not notice, but a lease that should have ended lives on.")),
      verb: t("Renew"),
      act: async () => {
        const found = await call("lease/keepalive", { ID: id });
        if (Number(found.result?.TTL ?? 0) <= 0) throw new Error(t("This lease has ended already."));
        note(t("Renewed."));
      },
    });
    loop.now();
  }

  async function look() {
    const found = await call("lease/timetolive", { ID: id, keys: true });
    const left = Number(found.TTL ?? 0);
    if (left < 0) {
      gone ||= feed.events.findLast((each) => each.id === id && each.type !== "GRANTED")?.type ?? "ENDED";
      renewButton.disabled = revokeButton.disabled = true;
      setText(keyCount, "0");
      replace(keys);
      draw();
      return 5000;
    }
    granted = Number(found.grantedTTL);
    const now = performance.now();
    const until = now + left * 1000;
    // The time is told in whole seconds: only one that is later by more than that is a renewal.
    if (ends && until > ends + 1500) {
      seen++;
      seenRenewals.push({ at: Date.now(), left: Math.max(0, (ends - now) / 1000) });
      if (seenRenewals.length > 200) seenRenewals.shift();
    }
    if (!ends || Math.abs(until - ends) > 1000) ends = until;
    setText(ttl, `${granted} s`);
    const found64 = found.keys ?? [];
    setText(keyCount, String(found64.length));
    const text = found64.join(" ");
    if (text !== shownKeys) {
      shownKeys = text;
      replace(keys, found64.slice(0, KEYS_SHOWN).map((key) => h("li", {}, keyLink(key))),
        found64.length > KEYS_SHOWN ? h("li", { class: "dim" }, t("and {n} more", { n: found64.length - KEYS_SHOWN })) : null,
        found64.length ? null : h("li", { class: "dim" }, t("It has no keys.")));
    }
    const allowed = found64.every((key) => may("write", fromBase64(key)));
    renewButton.hidden = revokeButton.hidden = !allowed;
    draw();
    return 1000;
  }

  function draw() {
    bar((ends - performance.now()) / 1000, granted, gone);
    setText(renewals, seenRenewals.length
      ? `${seen} · ${t("the last with {time} left", { time: duration(seenRenewals.at(-1).left) })}`
      : String(seen));
    const lines = [
      ...feed.events.filter((each) => each.id === id),
      ...seenRenewals.map((each) => ({ type: "RENEWED", at: each.at, left: each.left })),
    ].sort((a, b) => b.at - a.at);
    const text = lines.map((each) => each.type + each.at).join();
    if (text === history.shown) return;
    history.shown = text;
    replace(history, lines.map((each) => h("li", {}, h("time", {}, clockTime(each.at)),
      each.type === "RENEWED" ? h("span", { class: "badge renewed" }, t("renewed")) : badge(each.type),
      h("span", { class: "dim" }, each.type === "RENEWED" ? t("with {time} left", { time: duration(each.left) })
        : each.type === "GRANTED" ? `TTL ${each.ttl} s` : t("{n} keys", { n: each.keys })))),
      lines.length ? null : h("li", { class: "dim" }, t("None since the page was opened.")));
  }

  const onevents = (event) => {
    const ended = event.detail.findLast((each) => each.id === id && each.type !== "GRANTED");
    if (!ended) return;
    gone = ended.type;
    loop.now();
  };
  feed.addEventListener("events", onevents);

  replace(root,
    h("p", { class: "path" }, h("a", { href: "#/leases" }, t("Leases"))),
    h("div", { class: "view-head" }, h("h1", {}, t("Lease"), " ", h("span", { class: "mono" }, idHex(id))),
      h("span", { class: "actions" }, renewButton, revokeButton)),
    h("div", { class: "panel pad" }, barCell,
      h("dl", { class: "facts" },
        fact(t("Hexadecimal"), [h("span", { class: "mono" }, idHex(id)), copyLink(idHex(id))]),
        fact(t("Decimal"), [h("span", { class: "mono" }, id), copyLink(id)]),
        fact("TTL", ttl), fact(t("Keys"), keyCount), fact(t("Renewals seen"), renewals))),
    h("div", { class: "split even" },
      h("section", { class: "panel pad" }, h("h2", {}, t("Keys")), keys),
      h("section", { class: "panel pad" }, h("h2", {}, t("Since the page was opened")), history)));

  const loop = every(1000, look);
  const tick = setInterval(() => ends && draw(), 250);
  return () => {
    loop.stop();
    clearInterval(tick);
    feed.removeEventListener("events", onevents);
  };
}

const copyLink = (text) => h("button", { type: "button", class: "copy", title: t("Copy"), "aria-label": t("Copy"), onclick: () => copy(text) });
