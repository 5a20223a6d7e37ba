// SPDX-License-Identifier: Apache-2.0
// JSON, folded and coloured, from its own text: numbers keep all their digits, and names that come twice stay twice.

import { h } from "./dom.js";
import { shown } from "./text.js";

const TOKEN = /\s*([[\]{}:,]|"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)/y;
const NODES_MAX = 5000;
const OPEN_DEPTH = 2;
const OPEN_CHILDREN_MAX = 50;

/** A tree of the text, or null if it is no JSON, or too much of it to be folded. */
export function jsonTree(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  TOKEN.lastIndex = 0;
  const left = { nodes: NODES_MAX };
  const node = read(text, left);
  return node === null ? null : h("div", { class: "json" }, draw(node, 0, null, true));
}

const next = (text) => TOKEN.exec(text)[1];

// {open, children: [[name token or null, node]]} or a token. The text is JSON, so nothing else can come.
function read(text, left, first = next(text)) {
  if (--left.nodes < 0) return null;
  if (first !== "{" && first !== "[") return first;
  const node = { open: first, children: [] };
  for (let token = next(text); token !== "}" && token !== "]"; token = next(text)) {
    if (token === ",") continue;
    let name = null;
    if (first === "{") {
      name = token;
      next(text); // the colon
      token = next(text);
    }
    const child = read(text, left, token);
    if (child === null) return null;
    node.children.push([name, child]);
  }
  return node;
}

/** The text in lines, as it is folded; null if it is no JSON, or too much of it. */
export function jsonLines(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  TOKEN.lastIndex = 0;
  const node = read(text, { nodes: NODES_MAX });
  return node === null ? null : [...written(node, "", "", "")];
}

function* written(node, indent, label, comma) {
  if (typeof node === "string") yield indent + label + node + comma;
  else if (!node.children.length) yield indent + label + (node.open === "{" ? "{}" : "[]") + comma;
  else {
    yield indent + label + node.open;
    for (const [at, [name, child]] of node.children.entries()) {
      yield* written(child, indent + "  ", name === null ? "" : `${name}: `, at < node.children.length - 1 ? "," : "");
    }
    yield indent + (node.open === "{" ? "}" : "]") + comma;
  }
}

const kindOf = (token) => (token[0] === '"' ? "string" : /[-\d]/.test(token[0]) ? "number" : "word");

function draw(node, depth, name, last) {
  const label = name === null ? [] : [h("span", { class: "json-name" }, shown(name)), ": "];
  const comma = last ? "" : ",";
  if (typeof node === "string") return h("div", {}, label, h("span", { class: `json-${kindOf(node)}` }, shown(node)), comma);
  const close = node.open === "{" ? "}" : "]";
  const { children } = node;
  if (!children.length) return h("div", {}, label, node.open + close + comma);
  const rows = children.map(([childName, child], at) => draw(child, depth + 1, childName, at === children.length - 1));
  return h("details", { open: depth < OPEN_DEPTH && children.length <= OPEN_CHILDREN_MAX },
    h("summary", {}, label, node.open, h("span", { class: "json-fold" }, ` ${children.length} ${close}${comma}`)),
    h("div", { class: "json-children" }, rows), h("div", {}, close + comma));
}
