// SPDX-License-Identifier: Apache-2.0
// The difference between two values, line by line.

import { h } from "./dom.js";
import { jsonLines } from "./json-view.js";
import { decode, hexDump, shown } from "./text.js";
import { t } from "./words.js";

const LINES_MAX = 1500;
const HEX_BYTES_MAX = 65_536;
const CONTEXT = 3;

// Lines of both values, in the same form: JSON written in lines, text, or a hex dump.
function linesOf(values) {
  const texts = values.map(decode);
  if (texts.includes(null)) return values.map((bytes) => hexDump(bytes, HEX_BYTES_MAX).split("\n"));
  const json = texts.map((text) => (/^\s*[[{]/.test(text) ? jsonLines(text) : null));
  return json.includes(null) ? texts.map((text) => text.split("\n")) : json;
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
  const lines = diff(...linesOf([before, after]));
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
