// SPDX-License-Identifier: Apache-2.0
// The difference between two values, line by line.

import { h } from "./dom.js";
import { decode, hexDump, shown } from "./text.js";
import { t } from "./words.js";

const LINES_MAX = 1500;
const CONTEXT = 3;

// Lines of a value: of JSON written in lines, of text, of a hex dump. Both sides are taken in the same form.
function linesOf(bytes, form) {
  if (form === "hex") return hexDump(bytes, 65_536).split("\n");
  const text = decode(bytes);
  return (form === "json" ? JSON.stringify(JSON.parse(text), null, 2) : text).split("\n");
}

function formOf(values) {
  const texts = values.map(decode);
  if (texts.includes(null)) return "hex";
  try {
    // Only where it says the same: numbers that JavaScript would round stay as they are written.
    if (texts.every((text) => /^\s*[[{]/.test(text) && JSON.stringify(JSON.parse(text)) === text.trim().replace(/\s*\n\s*/g, ""))) return "json";
  } catch {
    return "text";
  }
  return "text";
}

/** [mark, line] with mark " ", "-" or "+". */
export function diff(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const left = a.slice(start, a.length - end);
  const right = b.slice(start, b.length - end);
  return [
    ...a.slice(0, start).map((line) => [" ", line]),
    ...(left.length > LINES_MAX || right.length > LINES_MAX
      ? [...left.map((line) => ["-", line]), ...right.map((line) => ["+", line])]
      : middle(left, right)),
    ...a.slice(a.length - end).map((line) => [" ", line]),
  ];
}

// By the longest common subsequence of lines.
function middle(a, b) {
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const found = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      found.push([" ", a[i++]]);
      j++;
    } else if (i < a.length && (j === b.length || best[(i + 1) * width + j] >= best[i * width + j + 1])) found.push(["-", a[i++]]);
    else found.push(["+", b[j++]]);
  }
  return found;
}

const NAMES = { "-": "removed", "+": "added" };

/** The difference as an element; lines far from any change are left out. */
export function diffView(before, after) {
  const form = formOf([before, after]);
  const lines = diff(linesOf(before, form), linesOf(after, form));
  const near = new Set();
  for (const [at, [mark]] of lines.entries()) {
    if (mark !== " ") for (let each = at - CONTEXT; each <= at + CONTEXT; each++) near.add(each);
  }
  const rows = [];
  let skipped = 0;
  for (const [at, [mark, line]] of lines.entries()) {
    if (!near.has(at)) {
      skipped++;
      continue;
    }
    if (skipped) rows.push(h("div", { class: "skipped" }, t("{n} equal lines", { n: skipped })));
    skipped = 0;
    rows.push(h("div", { class: NAMES[mark] ?? "" }, h("span", { class: "mark" }, mark), shown(line, "\t")));
  }
  if (!near.size) return h("p", { class: "dim" }, t("The values are equal."));
  return h("div", { class: "diff mono", tabindex: "0", role: "region", "aria-label": t("Difference") }, rows);
}
