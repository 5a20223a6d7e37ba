// SPDX-License-Identifier: Apache-2.0
// One key: its value, its revisions and what changed between them; edit and delete it.

import { follow } from "../api.js";
import { copyButton, h, note, replace, setText } from "../dom.js";
import { diffView } from "../diff.js";
import { deleteKey, editKey, get } from "../kv.js";
import { leaseLink, valueView } from "../parts.js";
import { may } from "../session.js";
import { decode, fromBase64, fromUrl, shown, size, toBase64, toUrl } from "../text.js";
import { t } from "../words.js";

const VERSIONS = 10; // read at a time: each may be a megabyte

export function keyView(root, [place64 = ""]) {
  const key64 = toBase64(fromBase64(fromUrl(place64))); // with its padding again
  const key = fromBase64(key64);
  const control = new AbortController();
  const facts = h("dl", { class: "facts" });
  const value = h("div", {});
  const versions = h("div", { class: "versions" });
  const edit = h("button", { type: "button", class: "primary", hidden: true, onclick: () => editKey(kv) }, t("Edit…"));
  const remove = h("button", { type: "button", class: "danger", hidden: true, onclick: () => deleteKey(kv) }, t("Delete…"));
  let kv = null;
  let known = [];
  let from = null;
  let to = null;

  const fact = (label, ...content) => h("div", {}, h("dt", {}, label), h("dd", {}, content));
  const failed = (error) => {
    if (error.name !== "AbortError" && !error.offline) note(error.text ?? String(error), "bad");
  };

  async function load() {
    const found = await get(key64, "0", control.signal);
    kv = found.kv;
    edit.hidden = remove.hidden = !kv || !may("write", key);
    if (!kv) {
      replace(facts);
      replace(value, h("p", { class: "dim" }, t("There is no such key as of revision {revision}.", { revision: found.revision })));
      replace(versions);
      return;
    }
    replace(facts, fact(t("Revision"), h("span", { class: "num" }, kv.mod_revision)), fact(t("Created in"), h("span", { class: "num" }, kv.create_revision)),
      fact(t("Version"), h("span", { class: "num" }, kv.version)), fact(t("Size"), size(fromBase64(kv.value).length)),
      fact(t("Lease"), kv.lease ? leaseLink(kv.lease) : t("none")));
    replace(value, valueView(fromBase64(kv.value)));
    known = [kv];
    from = to = null;
    await older();
  }

  // The versions before the oldest one that is known, by asking for the key as of the revision before that.
  async function older() {
    let last = known.at(-1);
    let end = "";
    for (let read = 0; read < VERSIONS; read++) {
      if (Number(last.version) <= 1) break;
      try {
        const { kv: before } = await get(key64, (BigInt(last.mod_revision) - 1n).toString(), control.signal);
        if (!before) break;
        known.push((last = before));
      } catch (error) {
        if (error.name === "AbortError") return;
        end = t("Older ones have been compacted.");
        break;
      }
    }
    if (known.length > 1 && from === null) [from, to] = [known[1], known[0]];
    drawVersions(end || (Number(last.version) <= 1 ? "" : null));
  }

  function drawVersions(end) {
    const mark = (name, chosen, each, pick) => h("input", {
      type: "radio", name, "aria-label": `${name === "from" ? t("From") : t("To")} ${each.mod_revision}`,
      props: { checked: chosen === each },
      onchange: () => {
        pick(each);
        drawDiff();
      },
    });
    const box = h("div", { class: "diff-box" });
    const drawDiff = () => replace(box, from && to && from !== to
      ? [h("h3", {}, t("From revision {from} to {to}", { from: from.mod_revision, to: to.mod_revision })), diffView(fromBase64(from.value), fromBase64(to.value))]
      : null);
    replace(versions,
      h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("From")), h("th", { scope: "col" }, t("To")), h("th", { scope: "col", class: "num" }, t("Revision")),
        h("th", { scope: "col", class: "num" }, t("Version")), h("th", { scope: "col", class: "num" }, t("Size")), h("th", { scope: "col" }, t("Lease")))),
      h("tbody", {}, known.map((each) => h("tr", {}, h("td", {}, mark("from", from, each, (it) => (from = it))), h("td", {}, mark("to", to, each, (it) => (to = it))),
        h("td", { class: "num" }, each.mod_revision), h("td", { class: "num" }, each.version), h("td", { class: "num" }, size(fromBase64(each.value).length)),
        h("td", {}, each.lease ? leaseLink(each.lease) : "–"))))),
      end === null ? h("button", { type: "button", class: "more", onclick: () => older().catch(failed) }, t("Older ones")) : end ? h("p", { class: "dim" }, end) : null,
      box);
    drawDiff();
  }

  // One key is watched: what is shown is what is there.
  const state = h("span", { class: "live-state", "data-state": "lost" });
  const end = follow("watch", {
    request: () => ({ create_request: { key: key64 } }),
    onresult: () => load().catch(failed),
    onstate: (now) => {
      state.dataset.state = now;
      setText(state, { live: t("live"), lost: t("reconnecting…"), denied: t("not allowed") }[now]);
      if (now === "denied") load().catch(failed);
    },
  });

  const slash = key.lastIndexOf(47);
  const folder = key.slice(0, slash + 1);
  replace(root,
    h("p", { class: "path" }, h("a", { href: "#/keys" }, t("Keys")), " ", slash >= 0 ? h("a", { class: "mono", href: `#/keys/tree/${toUrl(toBase64(folder))}` }, shown(folder)) : null),
    h("div", { class: "view-head" }, h("h1", { class: "mono key-title" }, shown(key)),
      decode(key) !== null ? copyButton(t("Copy the key"), decode(key)) : null, state, h("span", { class: "actions" }, edit, remove)),
    h("div", { class: "panel pad" }, facts),
    h("section", { class: "panel pad" }, h("h2", {}, t("Value")), value),
    h("section", { class: "panel pad" }, h("h2", {}, t("Revisions")), versions));
  return () => {
    control.abort();
    end();
  };
}
