// SPDX-License-Identifier: Apache-2.0
// Keys: what the views ask and change, and the dialogs in which they do it.

import { call } from "./api.js";
import { ask, choice, field, h, note, replace } from "./dom.js";
import { diffView } from "./diff.js";
import { keyList } from "./parts.js";
import { bytesOf, compare, decode, fromBase64, fromHex, idFromHex, idHex, plain, prefixEnd, shown, toBase64, toHex } from "./text.js";
import { t } from "./words.js";

const ZERO = new Uint8Array(1);

/** The range of all keys with a prefix, as in a request; an empty prefix: all keys. */
export const rangeOf = (prefix) => ({
  key: toBase64(prefix.length ? prefix : ZERO),
  range_end: toBase64(prefix.length ? prefixEnd(prefix) : ZERO),
});

const after = (key) => {
  const next = new Uint8Array(key.length + 1);
  next.set(key);
  return next;
};

/** Keys in order from `from` on, without values: {kvs, more, count, revision}. */
export async function keysFrom(prefix, from, limit, signal) {
  const range = rangeOf(prefix);
  const found = await call("kv/range", {
    ...range, key: from ? toBase64(from) : range.key, keys_only: true, limit: String(limit),
  }, { signal });
  return { kvs: found.kvs ?? [], more: Boolean(found.more), count: Number(found.count ?? 0), revision: found.header.revision };
}

const SLASH = 47;
const STEP = 64;

/**
 * What stands directly below a prefix: folders, which end at the next slash, and keys. At most `max` of them, from `from`
 * on. Keys below a folder are passed over, so a folder costs one request however many there are.
 */
export async function level(prefix, from, max, signal) {
  const entries = [];
  let revision = "0";
  for (let at = from; entries.length < max; ) {
    const found = await keysFrom(prefix, at, STEP, signal);
    revision = found.revision;
    let folder = null;
    for (const kv of found.kvs) {
      const key = fromBase64(kv.key);
      if (folder && compare(key, folder) >= 0 && key.length >= folder.length && folder.every((byte, i) => key[i] === byte)) continue;
      folder = null;
      const slash = key.indexOf(SLASH, prefix.length);
      if (slash >= 0) {
        folder = key.slice(0, slash + 1);
        entries.push({ folder });
      } else entries.push({ kv, key });
      at = after(key);
      if (entries.length >= max) break;
    }
    if (folder) at = prefixEnd(folder);
    else if (!found.more && entries.length < max) return { entries, next: null, revision };
    if (!found.kvs.length) return { entries, next: null, revision };
    from = at;
  }
  return { entries, next: from, revision };
}

export async function get(key64, revision = "0", signal = undefined) {
  const found = await call("kv/range", { key: key64, revision }, { signal });
  return { kv: found.kvs?.[0] ?? null, revision: found.header.revision };
}

const unchanged = (kv) => ({ target: "MOD", result: "EQUAL", key: kv.key, mod_revision: kv.mod_revision });
const absent = (key64) => ({ target: "VERSION", result: "EQUAL", key: key64, version: "0" });

/** A text area for bytes, as text or as hex. `bytes()` throws an Error if it holds none. */
function bytesInput(label, bytes) {
  const text = decode(bytes);
  let hex = text === null;
  const area = h("textarea", { rows: "12", spellcheck: "false", autocapitalize: "none", class: "mono", "aria-label": label, props: { value: hex ? toHex(bytes) : text } });
  const read = () => {
    if (!hex) return bytesOf(area.value);
    const found = fromHex(area.value);
    if (found === null) throw new Error(t("These are no pairs of hexadecimal digits."));
    return found;
  };
  const forms = choice(t("Form"), [["text", t("Text")], ["hex", t("Hex")]], hex ? "hex" : "text", (form) => {
    try {
      const now = read();
      const asText = decode(now);
      if (form === "text" && asText === null) {
        note(t("These bytes are no text in UTF-8."), "bad");
        return;
      }
      hex = form === "hex";
      area.value = hex ? toHex(now) : asText;
    } catch (error) {
      note(error.message, "bad");
    }
  });
  return { element: h("div", { class: "field" }, h("div", { class: "value-head" }, h("span", { class: "label" }, label), forms), area), bytes: read, area };
}

/** Edits a key's value. It is written only if the key is as it was seen. Resolves to whether it was. */
export function editKey(kv) {
  let base = kv;
  const input = bytesInput(t("Value"), fromBase64(kv.value));
  const seen = h("p", { class: "hint" });
  const conflict = h("div", { class: "conflict", hidden: true });
  const drawSeen = () => replace(seen, t("It is written only if the key is still as in revision {revision}.", { revision: base.mod_revision }));
  drawSeen();
  return ask({
    title: [t("Edit"), " ", h("span", { class: "mono" }, shown(fromBase64(kv.key)))],
    body: [input.element, seen, conflict],
    verb: t("Save"),
    wide: true,
    act: async () => {
      const value = input.bytes();
      const found = await call("kv/txn", {
        compare: [unchanged(base)],
        success: [{ request_put: { key: kv.key, value: toBase64(value), ignore_lease: true } }],
        failure: [{ request_range: { key: kv.key } }],
      });
      if (found.succeeded) {
        note(t("Saved as revision {revision}.", { revision: found.header.revision }));
        return true;
      }
      const now = found.responses?.[0]?.response_range?.kvs?.[0] ?? null;
      conflict.hidden = false;
      if (!now) {
        replace(conflict, h("p", {}, t("The key was deleted meanwhile.")));
      } else {
        replace(conflict, h("p", {}, t("From what is there now to what you would save:")), diffView(fromBase64(now.value), value),
          h("button", { type: "button", onclick: () => {
            base = now;
            drawSeen();
            conflict.hidden = true;
          } }, t("I have seen revision {revision}: save over it next time", { revision: now.mod_revision })));
      }
      throw new Error(t("Not saved: the key has changed since you saw it."));
    },
  });
}

/** Makes a key that is not there yet, perhaps on a lease, perhaps on a new one. Resolves to the key as base64, or null. */
export async function createKey(prefix) {
  const key = h("input", { type: "text", required: true, spellcheck: "false", autocapitalize: "none", class: "mono", props: { value: decode(prefix) ?? "" } });
  const value = bytesInput(t("Value"), new Uint8Array());
  const ttl = h("input", { type: "number", min: "1", max: "9000000000", step: "1", props: { value: "60" } });
  const id = h("input", { type: "text", spellcheck: "false", class: "mono", pattern: "[0-9a-fA-F]{1,16}", placeholder: "694d77aa9e38260f" });
  const ttlField = field(t("TTL in seconds"), ttl, t("Nothing renews it: the key goes when this time is over."));
  const idField = field(t("Lease ID, hexadecimal"), id);
  let lease = "none";
  const draw = () => {
    ttlField.hidden = lease !== "new";
    idField.hidden = lease !== "id";
  };
  const leases = choice(t("Lease"), [["none", t("No lease")], ["new", t("A new lease")], ["id", t("An existing lease")]], lease, (chosen) => {
    lease = chosen;
    draw();
  });
  draw();
  let made = null;
  await ask({
    title: t("New key"),
    body: [field(t("Key"), key), value.element, h("div", { class: "field" }, h("span", { class: "label" }, t("Lease")), leases), ttlField, idField],
    verb: t("Create"),
    wide: true,
    act: async () => {
      const key64 = toBase64(bytesOf(key.value));
      const put = { key: key64, value: toBase64(value.bytes()) };
      let granted = null;
      if (lease === "id") {
        put.lease = idFromHex(id.value.trim());
        if (put.lease === null) throw new Error(t("This is no lease ID."));
      } else if (lease === "new") {
        if (!ttl.reportValidity()) return false;
        put.lease = granted = (await call("lease/grant", { TTL: ttl.value })).ID;
      }
      let done = false;
      try {
        const found = await call("kv/txn", { compare: [absent(key64)], success: [{ request_put: put }] });
        done = Boolean(found.succeeded);
      } finally {
        if (!done && granted) await call("lease/revoke", { ID: granted });
      }
      if (!done) throw new Error(t("There is such a key already. Open it to edit it."));
      made = key64;
      note(granted ? t("Created, on lease {id}.", { id: idHex(granted) }) : t("Created."));
      return true;
    },
  });
  return made;
}

/** Deletes one key, if it is as it was seen. */
export function deleteKey(kv) {
  return ask({
    title: t("Delete this key?"),
    body: [keyList([kv.key]), h("p", { class: "hint" }, t("It is deleted only if the key is still as in revision {revision}.", { revision: kv.mod_revision }))],
    verb: t("Delete"),
    danger: true,
    act: async () => {
      const found = await call("kv/txn", {
        compare: [unchanged(kv)], success: [{ request_delete_range: { key: kv.key } }],
      });
      if (!found.succeeded) throw new Error(t("Not deleted: the key has changed since you saw it."));
      note(t("Deleted."));
    },
  });
}

/** Deletes all keys with a prefix, after showing which. */
export async function deleteBelow(prefix) {
  let found;
  try {
    found = await keysFrom(prefix, null, 100);
  } catch (error) {
    note(error.text, "bad");
    return false;
  }
  const { kvs, count } = found;
  if (!count) {
    note(t("There is nothing to delete."));
    return false;
  }
  return ask({
    title: [t("Delete all keys that begin with"), " ", h("span", { class: "mono" }, shown(prefix)), "?"],
    body: [keyList(kvs.map((kv) => kv.key), count - kvs.length), h("p", { class: "hint" }, t("This list is of revision {revision}; keys that come until you press the button go too.", { revision: found.revision }))],
    verb: t("Delete {n} keys", { n: count }),
    danger: true,
    act: async () => {
      const { deleted } = await call("kv/deleterange", rangeOf(prefix));
      note(t("{n} keys were deleted.", { n: Number(deleted ?? 0) }));
    },
  });
}

export const keyText = (key64) => plain(fromBase64(key64));
