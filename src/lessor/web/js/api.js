// SPDX-License-Identifier: Apache-2.0
// Calls to the server: the JSON gateway that any script can use, and its streams.
//
// Laws
// - Numbers of 64 bits are strings here, as in the gateway: JavaScript would round them.
// - The token is kept in this module's memory alone. It is in no URL and in no storage: a reload asks for it again.
// - All addresses are relative to this file, so a proxy may put a path before ours. Nothing else is ever asked.

import { t } from "./words.js";

const BASE = new URL("../../", import.meta.url);
const CALL_MS_MAX = 30_000;
const INVALID_ARGUMENT = 3;
const PERMISSION_DENIED = 7;
const UNAUTHENTICATED = 16;
const OFFLINE = "offline";

export class ApiError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }

  get offline() {
    return this.code === OFFLINE;
  }

  get denied() {
    return this.code === PERMISSION_DENIED;
  }

  /** Whether the server wants to know (again) who calls. */
  get wantsLogin() {
    return this.code === UNAUTHENTICATED || (this.code === INVALID_ARGUMENT && this.message.endsWith("user name is empty"));
  }

  get text() {
    if (this.offline) return t("The server does not answer.");
    if (this.denied) return t("The server refuses this: permission denied.");
    return this.message;
  }
}

// What the rest of the page listens to: "link" (whether the server answers), "login" (it wants a token).
export const events = new EventTarget();
let token = "";
let linked = true;

export function setToken(value) {
  token = value;
}

function link(up) {
  if (linked !== up) {
    linked = up;
    events.dispatchEvent(new CustomEvent("link", { detail: up }));
  }
}

function failed(error) {
  if (error.wantsLogin) events.dispatchEvent(new CustomEvent("login", { detail: token !== "" }));
  return error;
}

async function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = token;
  let reply;
  try {
    reply = await fetch(new URL("v3/" + path, BASE), {
      method: "POST", headers, body: JSON.stringify(body), signal, cache: "no-store", redirect: "error",
    });
  } catch (error) {
    if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw error;
    link(false);
    throw new ApiError(OFFLINE, String(error.message));
  }
  return reply;
}

const errorOf = (found) => new ApiError(found.code ?? found.grpc_code ?? 2, found.message ?? found.error ?? "unknown error");

/** One call. `path` is without /v3/. Rejects with an ApiError; whether a write was made is unknown when that is offline. */
export async function call(path, body = {}, { signal, quiet = false } = {}) {
  const limit = AbortSignal.timeout(CALL_MS_MAX);
  const reply = await send(path, body, signal ? AbortSignal.any([signal, limit]) : limit);
  let found;
  try {
    found = await reply.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    link(false);
    throw new ApiError(OFFLINE, `HTTP ${reply.status}`);
  }
  link(true);
  if (!reply.ok) {
    const error = errorOf(found);
    throw quiet ? error : failed(error);
  }
  return found;
}

/** The results of a streaming call, as they come, until it ends. `onopen` is called when the server has begun to answer. */
export async function* stream(path, body, signal) {
  const reply = await send(path, body, signal);
  if (!reply.ok) {
    const found = await reply.json().catch(() => ({}));
    throw failed(errorOf(found.error?.message ? found.error : found));
  }
  link(true);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = value.split("\n");
      kept.push(lines[0]);
      for (const line of lines.slice(1)) {
        const whole = kept.join("");
        kept = [line];
        if (!whole.trim()) continue;
        const found = JSON.parse(whole);
        if (found.error) throw failed(errorOf(found.error));
        yield found.result;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    link(false);
    throw new ApiError(OFFLINE, String(error.message));
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Resolves after so many ms, or at once when the signal aborts. */
const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });

/**
 * Holds a streaming call open: begins it again when it ends, at first soon and then every few seconds.
 * `request()` gives the body of each try, `onresult` takes the results, `onstate` "live", "lost" or "denied" with the error.
 * Returns a function that ends it. A page that is hidden holds no stream: a browser has only six connections to a server.
 */
export function follow(path, { request, onresult, onstate }) {
  let over = false;
  let current;

  async function run() {
    let wait = 250;
    while (!over && !document.hidden) {
      const control = (current = new AbortController());
      try {
        for await (const result of stream(path, request(), control.signal)) {
          wait = 250;
          if (result.created) onstate("live");
          onresult(result);
        }
        throw new ApiError(OFFLINE, "the stream ended");
      } catch (error) {
        if (over || control.signal.aborted) break;
        if (!(error instanceof ApiError)) throw error;
        onstate(error.denied || error.wantsLogin ? "denied" : "lost", error);
        if (error.denied || error.wantsLogin) return;
      }
      await pause(wait * (0.75 + Math.random() / 2), control.signal);
      wait = Math.min(wait * 2, 4000);
    }
    current = undefined;
  }

  const onvisibility = () => {
    if (document.hidden) {
      onstate("lost", new ApiError(OFFLINE, "hidden"));
      current?.abort();
      current = undefined;
    } else if (!over && !current) run();
  };
  document.addEventListener("visibilitychange", onvisibility);
  run();
  return () => {
    over = true;
    document.removeEventListener("visibilitychange", onvisibility);
    current?.abort();
  };
}

/** A page of the server that is no call: /metrics, /version. */
export async function page(path) {
  try {
    const reply = await fetch(new URL(path, BASE), { cache: "no-store", signal: AbortSignal.timeout(CALL_MS_MAX) });
    const text = await reply.text();
    link(true);
    return reply.ok ? text : "";
  } catch {
    link(false);
    return "";
  }
}

/**
 * Calls `act` again and again, `ms` after its end, while the page can be seen. `act` may return another time to wait.
 * `now()` calls it at once, or once more if it is under way.
 */
export function every(ms, act, { hidden = false } = {}) {
  let over = false;
  let running = false;
  let again = false;
  let timer;
  const run = async () => {
    if (running) {
      again = true;
      return;
    }
    clearTimeout(timer);
    running = true;
    let next = ms;
    try {
      do {
        again = false;
        if (hidden || !document.hidden) next = (await act()) ?? ms;
      } while (again && !over);
    } catch (error) {
      if (!(error instanceof ApiError) && error.name !== "AbortError") throw error;
    } finally {
      running = false;
      if (!over) timer = setTimeout(run, next);
    }
  };
  const onvisibility = () => document.hidden || over || run();
  if (!hidden) document.addEventListener("visibilitychange", onvisibility);
  queueMicrotask(run); // behind the code that keeps what is returned
  return {
    stop: () => {
      over = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onvisibility);
    },
    now: () => over || run(),
  };
}
