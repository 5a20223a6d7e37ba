// SPDX-License-Identifier: Apache-2.0
// Who looks at the page, and what they may do. The server decides; this only keeps from being offered what it would refuse.

import { call, setToken } from "./api.js";
import { bytesOf, compare, fromBase64 } from "./text.js";

export const session = { auth: false, user: "", root: true, permissions: null };

/** Asks whether there are users, at the start and after a login was asked for. */
export async function look() {
  try {
    session.auth = Boolean((await call("auth/status", {}, { quiet: true })).enabled);
  } catch (error) {
    if (error.offline) throw error;
    session.auth = true; // who is told that they may not ask has to log in
  }
  if (!session.auth) Object.assign(session, { user: "", root: true, permissions: null });
  return session;
}

/** Logs in, and asks what this user may do. Rejects with the server's error. */
export async function login(user, password) {
  const { token } = await call("auth/authenticate", { name: user, password }, { quiet: true });
  setToken(token);
  Object.assign(session, { user, root: false, permissions: null });
  try {
    const { roles = [] } = await call("auth/user/get", { name: user }, { quiet: true });
    session.root = roles.includes("root");
    const found = await Promise.all(roles.map((role) => call("auth/role/get", { role }, { quiet: true })));
    session.permissions = found.flatMap((each) => each.perm ?? []).map((each) => ({
      type: each.permType ?? "READ",
      key: fromBase64(each.key),
      end: each.range_end ? fromBase64(each.range_end) : null,
    }));
  } catch {
    session.permissions = null; // unknown: all is offered, and the server refuses
  }
}

export function logout() {
  setToken("");
  Object.assign(session, { user: "", root: false, permissions: [] });
}

const NO_END = new Uint8Array(1);
const open = (end) => end !== null && compare(end, NO_END) === 0;

/** Whether to offer to "read" or "write" a key, or all keys up to `end` (a zero byte: without an end). */
export function may(what, key, end = null) {
  if (!session.auth || session.root || session.permissions === null) return true;
  const wanted = typeof key === "string" ? bytesOf(key) : key;
  return session.permissions.some((each) => {
    if (each.type !== "READWRITE" && each.type !== what.toUpperCase()) return false;
    if (each.end === null) return end === null && compare(each.key, wanted) === 0;
    if (compare(each.key, wanted) > 0) return false;
    if (end === null) return open(each.end) || compare(wanted, each.end) < 0;
    return open(each.end) || (!open(end) && compare(end, each.end) <= 0);
  });
}
