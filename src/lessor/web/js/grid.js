// SPDX-License-Identifier: Apache-2.0
// A table of any number of rows, of which only those that can be seen are in the document.
//
// Laws
// - Scrolling moves rows that are there and fills them anew; it makes none. The cost does not depend on the rows.
// - The rows are asked for by number. A row that is not known yet is shown as empty, and `onneed` is told.
// - The keyboard walks it: arrows, Page Up and Down, Home, End, Enter; other keys go to `onkey`.

import { h } from "./dom.js";

const ROW_PX = 30;
const OVERSCAN = 6;
const HEIGHT_PX_MAX = 8_000_000; // browsers clip taller elements, each at another height

let grids = 0;

export class Grid {
  /**
   * `columns`: {key, label, class, sortable, make(cell), fill(cell, row, number)}.
   * `row(number)` gives a row or undefined, `onopen(row)` is Enter or a click, `onneed(first, last)` tells what is seen.
   */
  constructor({ label, kind, columns, row, onopen, onneed, onkey, onsort }) {
    Object.assign(this, { columns, row, onopen, onneed, onkey });
    this.id = `grid-${++grids}`;
    this.total = 0;
    this.active = -1;
    this.rows = new Map(); // number -> element
    this.spare = [];
    this.heads = columns.map((column) =>
      h("div", { role: "columnheader", class: column.class ?? "" },
        column.sortable
          ? h("button", { type: "button", class: "sort", onclick: () => onsort(column.key) }, column.label)
          : column.label));
    this.layer = h("div", { class: "grid-layer", role: "presentation" });
    this.body = h("div", { class: "grid-body", role: "rowgroup", tabindex: "0", "aria-label": label }, this.layer);
    this.empty = h("div", { class: "grid-empty", hidden: true });
    this.element = h("div", { class: `grid ${kind}`, role: "grid", "aria-label": label, "aria-rowcount": "-1" },
      h("div", { class: "grid-head", role: "rowgroup" }, h("div", { class: "row", role: "row" }, this.heads)),
      this.body, this.empty);
    this.body.addEventListener("scroll", () => this.#schedule(), { passive: true });
    this.body.addEventListener("keydown", (event) => this.#keydown(event));
    this.body.addEventListener("focus", () => {
      if (this.active < 0 && this.total) this.activate(0);
    });
    this.resize = new ResizeObserver(() => this.#schedule());
    this.resize.observe(this.body);
  }

  destroy() {
    this.resize.disconnect();
  }

  /** Marks the column by which the rows are ordered. */
  sorted(key, direction = "ascending") {
    for (const [at, column] of this.columns.entries()) {
      if (column.key === key) this.heads[at].setAttribute("aria-sort", direction);
      else this.heads[at].removeAttribute("aria-sort");
    }
  }

  /** How many rows there are. `empty`: what is said when there are none. */
  setTotal(total, empty = "") {
    this.total = total;
    this.height = Math.min(total * ROW_PX, HEIGHT_PX_MAX);
    this.layer.style.height = `${this.height}px`;
    this.element.setAttribute("aria-rowcount", String(total + 1));
    this.empty.hidden = total > 0;
    this.empty.textContent = empty;
    if (this.active >= total) this.active = total - 1;
    this.draw();
  }

  toTop() {
    this.body.scrollTop = 0;
    this.active = -1;
  }

  #schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw(false);
    });
  }

  // The row at the top of what is seen, and how many pixels one row of scrolling takes.
  #view() {
    const seen = this.body.clientHeight;
    const real = this.total * ROW_PX;
    const factor = real > this.height ? (real - seen) / Math.max(1, this.height - seen) : 1;
    return { seen, factor, top: this.body.scrollTop * factor };
  }

  /** The numbers of the rows that are seen, as [first, last]. */
  range() {
    const { seen, top } = this.#view();
    return [Math.floor(top / ROW_PX), Math.min(this.total - 1, Math.ceil((top + seen) / ROW_PX))];
  }

  /** Fills the rows that are seen; with `all` false only those that were not seen before. */
  draw(all = true) {
    const { factor, top } = this.#view();
    let [first, last] = this.range();
    this.onneed?.(first, last);
    first = Math.max(0, first - OVERSCAN);
    last = Math.min(this.total - 1, last + OVERSCAN);
    for (const [number, element] of this.rows) {
      if (number < first || number > last) {
        this.rows.delete(number);
        element.classList.remove("active");
        element.removeAttribute("aria-selected");
        this.spare.push(element);
      }
    }
    const shift = factor === 1 ? 0 : this.body.scrollTop - top; // of a table taller than the browser allows
    let previous = null;
    for (let number = first; number <= last; number++) {
      let element = this.rows.get(number);
      const fresh = !element;
      if (fresh) {
        element = this.spare.pop() ?? this.#make();
        this.rows.set(number, element);
        element.id = `${this.id}-${number}`;
        element.setAttribute("aria-rowindex", String(number + 2));
        element.hidden = false;
        // In the order of their numbers in the document too: it is read out in that order.
        this.layer.insertBefore(element, previous ? previous.nextSibling : this.layer.firstChild);
      }
      previous = element;
      if (fresh || factor !== 1) element.style.transform = `translateY(${number * ROW_PX + shift}px)`;
      if (fresh || all) this.#fill(element, number);
    }
    for (const element of this.spare) element.hidden = true;
  }

  #make() {
    const cells = this.columns.map((column) => {
      const cell = h("div", { role: "gridcell", class: column.class ?? "" });
      column.make?.(cell);
      return cell;
    });
    const element = h("div", { class: "row", role: "row" }, cells);
    element.cells = cells;
    element.addEventListener("click", (event) => {
      if (event.target.closest("button, a, input")) return;
      this.activate(element.number);
      this.#open(element.number);
    });
    return element;
  }

  #fill(element, number) {
    element.number = number;
    const row = this.row(number);
    element.classList.toggle("waits", row === undefined);
    element.classList.toggle("active", number === this.active);
    element.classList.toggle("gone", Boolean(row?.gone));
    if (number === this.active) element.setAttribute("aria-selected", "true");
    else element.removeAttribute("aria-selected");
    if (row === undefined) return;
    for (const [at, column] of this.columns.entries()) column.fill(element.cells[at], row, number);
  }

  #open(number) {
    const row = this.row(number);
    if (row !== undefined) this.onopen?.(row, number);
  }

  /** Makes a row the one that the keyboard is at, and shows it. */
  activate(number) {
    this.active = Math.max(0, Math.min(this.total - 1, number));
    const { seen, factor, top } = this.#view();
    const at = this.active * ROW_PX;
    if (at < top) this.body.scrollTop = at / factor;
    else if (at + ROW_PX > top + seen) this.body.scrollTop = (at + ROW_PX - seen) / factor;
    this.draw();
    this.body.setAttribute("aria-activedescendant", `${this.id}-${this.active}`);
  }

  #keydown(event) {
    if (event.target !== this.body || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = Math.max(1, Math.floor(this.body.clientHeight / ROW_PX) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: step, PageUp: -step, Home: -this.total, End: this.total };
    if (event.key in moves && this.total) this.activate(this.active + moves[event.key]);
    else if (event.key === "Enter" && this.active >= 0) this.#open(this.active);
    else if (!this.onkey?.(event.key, this.row(this.active))) return;
    event.preventDefault();
  }
}
