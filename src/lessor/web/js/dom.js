// SPDX-License-Identifier: Apache-2.0
// Elements, made without markup: text becomes text nodes, whatever it holds.

import { t } from "./words.js";

/** An element. `attrs`: class, on<event> handlers, properties in `props`, and attributes; null and false leave one out. */
export function h(tag, attrs = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "props") Object.assign(element, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Sets the text only where it differs: a change of the tree costs a layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let notes;

/** A short note at the edge of the page, read out by screen readers. `kind`: "ok" or "bad". */
export function note(text, kind = "ok") {
  if (!notes) {
    notes = h("div", { class: "notes", role: "status", "aria-live": "polite" });
    document.body.append(notes);
  }
  const line = h("div", { class: `note ${kind}` }, text);
  notes.append(line);
  setTimeout(() => line.remove(), kind === "bad" ? 8000 : 3000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain http a browser has no clipboard for pages; the old way still works.
    const area = h("textarea", { class: "away", "aria-hidden": "true", props: { value: text } });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  note(t("Copied"));
}

export const copyButton = (label, text) =>
  h("button", { class: "copy", type: "button", title: label, "aria-label": label, tabindex: "-1", onclick: (event) => {
    event.stopPropagation();
    copy(typeof text === "function" ? text() : text);
  } });

/**
 * Asks before something is done. Resolves to whether it was done.
 * `act` does it; what it throws is shown, and the dialog stays.
 */
export function ask({ title, body, verb, danger = false, act, wide = false }) {
  return new Promise((resolve) => {
    const problem = h("p", { class: "problem", role: "alert", hidden: true });
    const go = h("button", { class: danger ? "danger" : "primary", type: "submit" }, verb);
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "dialog-title" }, title),
      h("div", { class: "dialog-body" }, body),
      problem,
      h("div", { class: "dialog-buttons" },
        h("button", { type: "button", onclick: () => dialog.close() }, t("Cancel")), go),
    );
    const dialog = h("dialog", { class: wide ? "wide" : "", "aria-labelledby": "dialog-title" }, form);
    let done = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      problem.hidden = true;
      try {
        done = (await act()) !== false;
        if (done) dialog.close();
      } catch (error) {
        problem.textContent = error.text ?? String(error.message ?? error);
        problem.hidden = false;
      } finally {
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A button group of which one is pressed. `options`: [value, label]. */
export function choice(label, options, value, onchange) {
  const buttons = options.map(([each, text]) =>
    h("button", { type: "button", "aria-pressed": String(each === value), onclick: () => {
      for (const [at, [other]] of options.entries()) buttons[at].setAttribute("aria-pressed", String(other === each));
      onchange(each);
    } }, text));
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** A field with its label. */
let fields = 0;
export function field(label, control, hint) {
  control.id ||= `field-${++fields}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint && h("p", { class: "hint" }, hint));
}

/** Calls `act` when `element` has not changed for a moment. */
export function later(ms, act) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...args), ms);
  };
}
