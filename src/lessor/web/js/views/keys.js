// SPDX-License-Identifier: Apache-2.0
// The keys: as a tree, folder by folder, or as one flat list. They are read without their values, and so, as in etcd,
// without their leases: those are on the page of each key.

import { choice, field, h, later, note, replace, setText } from "../dom.js";
import { Grid } from "../grid.js";
import { createKey, deleteBelow, keysFrom, level } from "../kv.js";
import { keyHref } from "../parts.js";
import { may } from "../session.js";
import { bytesOf, compare, count, decode, fromBase64, fromUrl, plain, prefixEnd, shown, toBase64, toUrl } from "../text.js";
import { t } from "../words.js";

const ENTRIES = 200; // of a folder, at first
const PAGE = 500;
const AHEAD = 2000; // rows of the flat list that the scroll bar promises beyond those that are known

export function keysView(root, [mode = "tree", place64 = ""]) {
  const prefix = fromBase64(fromUrl(place64));
  const control = new AbortController();
  const total = h("span", { class: "total", role: "status" });
  const body = h("div", { class: "panel fill" });
  const go = (newMode, newPrefix) => (location.hash = `#/keys/${newMode}/${toUrl(toBase64(newPrefix))}`);
  const filter = h("input", { type: "search", spellcheck: "false", autocapitalize: "none", placeholder: t("Keys that begin with…"), "aria-label": t("Keys that begin with…"), props: { value: decode(prefix) ?? "" } });
  filter.addEventListener("change", () => go(mode, bytesOf(filter.value)));
  const failed = (error) => {
    if (error.name !== "AbortError") replace(body, h("p", { class: "problem pad", role: "alert" }, error.text ?? String(error)));
  };
  let draw = mode === "flat" ? flat : tree;
  let grid = null;

  function again() {
    grid?.destroy();
    grid = null;
    draw().catch(failed);
  }

  async function tree() {
    const list = h("div", { class: "tree-list" });
    replace(body, h("div", { class: "tree" }, h("div", { class: "tree-row tree-head" }, h("span", {}, t("Key")),
      h("span", { class: "num" }, t("Created")), h("span", { class: "num" }, t("Revision")), h("span", { class: "num" }, t("Version"))), list));
    const { revision } = await fill(list, prefix, null);
    if (!list.children.length) replace(list, h("p", { class: "dim pad" }, t("There are no keys here.")));
    const found = await keysFrom(prefix, null, 1, control.signal);
    setText(total, `${t("{n} keys", { n: found.count })} · ${t("as of revision {revision}", { revision })}`);
  }

  async function fill(list, folder, from) {
    const found = await level(folder, from, ENTRIES, control.signal);
    for (const entry of found.entries) list.append(entry.folder ? folderRow(entry.folder, folder) : keyRow(entry, folder));
    if (found.next) {
      const more = h("button", { type: "button", class: "more", onclick: async () => {
        more.disabled = true;
        try {
          await fill(list, folder, found.next);
          more.remove();
        } catch (error) {
          failed(error);
        }
      } }, t("Show more"));
      list.append(more);
    }
    return found;
  }

  function folderRow(folder, above) {
    const children = h("div", { class: "tree-children", hidden: true });
    const fold = h("button", { type: "button", class: "fold mono key-name", "aria-expanded": "false", onclick: () => {
      children.hidden = !children.hidden;
      fold.setAttribute("aria-expanded", String(!children.hidden));
      if (!children.hidden && !children.children.length) fill(children, folder, null).catch(failed);
    } }, shown(folder.slice(above.length)));
    return h("div", { class: "folder" },
      h("div", { class: "tree-row" }, fold,
        h("a", { class: "open", href: `#/keys/${mode}/${toUrl(toBase64(folder))}`, title: t("Only this folder") }, t("open"))), children);
  }

  function keyRow({ kv, key }, above) {
    const name = key.slice(above.length);
    return h("div", { class: "tree-row leaf" },
      h("a", { class: "mono key-name", href: keyHref(kv.key), title: plain(key) }, name.length ? shown(name) : t("(empty name)")),
      h("span", { class: "num" }, kv.create_revision), h("span", { class: "num" }, kv.mod_revision), h("span", { class: "num" }, kv.version));
  }

  async function flat() {
    const kvs = [];
    let more = true;
    let loading = false;
    let all = 0;
    const load = async () => {
      if (loading || !more) return;
      loading = true;
      try {
        const last = kvs.at(-1);
        const from = last ? Uint8Array.of(...fromBase64(last.key), 0) : null;
        const found = await keysFrom(prefix, from, PAGE, control.signal);
        kvs.push(...found.kvs);
        more = found.more;
        if (!last) {
          all = found.count;
          setText(total, `${t("{n} keys", { n: all })} · ${t("as of revision {revision}", { revision: found.revision })}`);
        }
        grid.setTotal(more ? Math.min(Math.max(all, kvs.length + 1), kvs.length + AHEAD) : kvs.length, t("There are no keys here."));
      } finally {
        loading = false;
      }
      if (grid.range()[1] >= kvs.length) await load();
    };
    grid = new Grid({
      label: t("Keys"),
      kind: "keys-grid",
      row: (number) => kvs[number],
      onopen: (kv) => (location.hash = keyHref(kv.key)),
      onneed: (first, last) => last >= kvs.length - 50 && load().catch(failed),
      columns: [
        { key: "key", label: t("Key"), class: "c-key", make: (cell) => cell.append(h("a", { class: "mono key-name", tabindex: "-1" })), fill: (cell, kv) => {
          if (cell.key64 === kv.key) return;
          cell.key64 = kv.key;
          const bytes = fromBase64(kv.key);
          cell.firstChild.setAttribute("href", keyHref(kv.key));
          cell.firstChild.title = plain(bytes);
          replace(cell.firstChild, shown(bytes));
        } },
        { key: "created", label: t("Created"), class: "c-created num", fill: (cell, kv) => setText(cell, kv.create_revision) },
        { key: "revision", label: t("Revision"), class: "c-revision num", fill: (cell, kv) => setText(cell, kv.mod_revision) },
        { key: "version", label: t("Version"), class: "c-version num", fill: (cell, kv) => setText(cell, kv.version) },
      ],
    });
    replace(body, grid.element);
    await load();
  }

  const crumbs = () => {
    const parts = [h("a", { href: `#/keys/${mode}` }, t("Keys"))];
    for (let at = prefix.indexOf(47); at >= 0; at = prefix.indexOf(47, at + 1)) {
      const upTo = prefix.slice(0, at + 1);
      parts.push(" ", h("a", { class: "mono", href: `#/keys/${mode}/${toUrl(toBase64(upTo))}` }, shown(prefix.slice(parts.from ?? 0, at + 1))));
      parts.from = at + 1;
    }
    return parts;
  };
  const writable = may("write", prefix.length ? prefix : new Uint8Array(1), prefix.length ? prefixEnd(prefix) : new Uint8Array(1));
  replace(root,
    prefix.length ? h("p", { class: "path" }, crumbs()) : null,
    h("div", { class: "view-head" }, h("h1", {}, t("Keys")), total,
      h("span", { class: "actions" },
        h("button", { type: "button", onclick: again }, t("Refresh")),
        h("button", { type: "button", class: "primary", onclick: async () => {
          const made = await createKey(prefix);
          if (made) location.hash = keyHref(made);
        } }, t("New key…")),
        prefix.length && writable ? h("button", { type: "button", class: "danger", onclick: async () => (await deleteBelow(prefix)) && again() }, t("Delete all…")) : null)),
    h("div", { class: "tools" }, filter,
      choice(t("Form"), [["tree", t("Tree")], ["flat", t("Flat")]], mode, (chosen) => go(chosen, prefix))),
    body);
  again();
  return () => {
    control.abort();
    grid?.destroy();
  };
}
