// SPDX-License-Identifier: Apache-2.0
// Bytes that strangers chose, as text that cannot steer the page or the reader.
//
// Laws
// - What is not printable (control characters, marks that turn the direction of writing, characters without a width)
//   is shown as an escape, in a style of its own, so that it cannot be taken for text that looks like one.
// - Nothing here makes markup. `nodes` makes text nodes and spans.

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();
const SUSPECT = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;
const NAMED = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0" };

export const bytesOf = (text) => encoder.encode(text);

export function fromBase64(text) {
  const raw = atob(text || "");
  const bytes = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at++) bytes[at] = raw.charCodeAt(at);
  return bytes;
}

export function toBase64(bytes) {
  let raw = "";
  for (let at = 0; at < bytes.length; at += 8192) raw += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(raw);
}

// Base64 for the part of a URL behind the #.
export const toUrl = (base64) => base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
export const fromUrl = (text) => text.replaceAll("-", "+").replaceAll("_", "/");

/** The text of bytes that are UTF-8, or null. */
export function decode(bytes) {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

const hex2 = (byte) => byte.toString(16).padStart(2, "0");

function escapeOf(char) {
  const code = char.codePointAt(0);
  if (NAMED[char]) return NAMED[char];
  if (code < 0x100) return "\\x" + hex2(code);
  return code < 0x10000 ? "\\u" + code.toString(16).padStart(4, "0") : `\\u{${code.toString(16)}}`;
}

// How many bytes the UTF-8 sequence at `at` has; 0: there is none.
function sequence(bytes, at) {
  const first = bytes[at];
  const length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  return length && at + length <= bytes.length && decode(bytes.subarray(at, at + length)) !== null ? length : 0;
}

// [text, whether it is an escape], in order. `keep`: characters that stay as they are.
function* pieces(bytes, keep) {
  const whole = decode(bytes);
  if (whole !== null) {
    yield* piecesOfText(whole, keep);
    return;
  }
  let start = 0;
  for (let at = 0; at < bytes.length; ) {
    const length = sequence(bytes, at);
    if (length) {
      at += length;
      continue;
    }
    if (at > start) yield* piecesOfText(decode(bytes.subarray(start, at)), keep);
    yield ["\\x" + hex2(bytes[at]), true];
    start = ++at;
  }
  if (start < bytes.length) yield* piecesOfText(decode(bytes.subarray(start)), keep);
}

function* piecesOfText(text, keep) {
  let start = 0;
  for (const found of text.matchAll(SUSPECT)) {
    if (keep.includes(found[0])) continue;
    if (found.index > start) yield [text.slice(start, found.index), false];
    yield [escapeOf(found[0]), true];
    start = found.index + found[0].length;
  }
  if (start < text.length) yield [text.slice(start), false];
}

const asBytes = (value) => (typeof value === "string" ? bytesOf(value) : value);

/** What is shown, as a string. */
export function plain(value, keep = "") {
  let text = "";
  for (const [piece] of pieces(asBytes(value), keep)) text += piece;
  return text;
}

/** What is shown, as an element that holds its own direction of writing. */
export function shown(value, keep = "") {
  const element = document.createElement("bdi");
  for (const [piece, escaped] of pieces(asBytes(value), keep)) {
    if (escaped) {
      const span = document.createElement("span");
      span.className = "esc";
      span.textContent = piece;
      element.append(span);
    } else element.append(piece);
  }
  return element;
}

/** Rows of a hex dump of at most `max` bytes: offset, hex, characters. */
export function hexDump(bytes, max) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, max); at += 16) {
    const row = bytes.subarray(at, Math.min(at + 16, max));
    const hex = Array.from(row, hex2).join(" ");
    const chars = Array.from(row, (byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex.slice(0, 23).padEnd(23)}  ${hex.slice(24).padEnd(23)}  ${chars}`);
  }
  return lines.join("\n");
}

export const toHex = (bytes) => Array.from(bytes, hex2).join(" ");

/** The bytes of hex digits, with any white space between them; null if it is none. */
export function fromHex(text) {
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-f]/i.test(digits)) return null;
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** Whether two byte strings are equal, or which comes first: -1, 0, 1. */
export function compare(a, b) {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) if (a[at] !== b[at]) return a[at] < b[at] ? -1 : 1;
  return Math.sign(a.length - b.length);
}

/** The end of the range of all keys with a prefix; one zero byte (no end) where there is none. */
export function prefixEnd(prefix) {
  for (let at = prefix.length - 1; at >= 0; at--) {
    if (prefix[at] < 0xff) {
      const end = prefix.slice(0, at + 1);
      end[at]++;
      return end;
    }
  }
  return new Uint8Array(1);
}

export const startsWith = (bytes, prefix) =>
  bytes.length >= prefix.length && prefix.every((byte, at) => bytes[at] === byte);

// A lease's id is a signed number of 64 bits; people and `lessor` write it as unsigned hex.
export const idHex = (id) => BigInt.asUintN(64, BigInt(id)).toString(16);
export function idFromHex(text) {
  return /^[0-9a-f]{1,16}$/i.test(text) ? BigInt.asIntN(64, BigInt("0x" + text)).toString() : null;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
export function size(bytes) {
  let value = Number(bytes);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** A time as people say it: 950 ms, 4.2 s, 3 m 20 s, 2 h 5 m, 3 d 4 h. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0) return "0 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} m`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export const clockTime = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
export const count = (number) => Number(number).toLocaleString("en-US");
