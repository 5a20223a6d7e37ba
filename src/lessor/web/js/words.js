// SPDX-License-Identifier: Apache-2.0
// The words of the page. The key of a text is its English; other languages have a table of their own.

import { ZH } from "./words-zh.js";

const TABLES = { en: {}, zh: ZH };
export const LANGUAGES = [["en", "English"], ["zh", "中文"]];

// English has another form for one of a thing.
const ONE = {
  "{n} keys": "{n} key",
  "{n} leases": "{n} lease",
  "{n} events": "{n} event",
  "{n} waiting": "{n} waiting",
  "Delete {n} keys": "Delete {n} key",
};

let language = "en";

/** Marks a text that is kept in a table and given to `t` later, so that it can be found. */
export const word = (text) => text;

export function chooseLanguage(wanted) {
  language = wanted in TABLES ? wanted : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}

export const currentLanguage = () => language;

/** The text in the language of the page, with `{name}` replaced by values. */
export function t(text, values = {}) {
  let found = TABLES[language][text] ?? text;
  if (language === "en" && values.n === 1 && ONE[text]) found = ONE[text];
  return found.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name] ?? whole;
    return typeof value === "number" ? value.toLocaleString("en-US") : value;
  });
}
