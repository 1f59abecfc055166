// Owns: the rows of an answer as a grid: a fixed head, and only the rows that are seen as elements.
//
// What must hold: the number of elements does not grow with the rows. The keyboard reaches every cell.

import { element } from "./store.js";

const HEIGHT = 24;
const AROUND = 8;
const WIDEST = 60;

export class Grid {
  constructor(box) {
    this.box = box;
    this.clear("Run a statement to see its rows here.");
    box.addEventListener("scroll", () => this.draw());
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.draw()).observe(box);
  }

  clear(text) {
    this.columns = [];
    this.rows = [];
    this.active = null;
    this.body = null;
    this.box.removeAttribute("aria-activedescendant");
    this.box.replaceChildren(element("p", { class: "empty", text }));
  }

  begin(columns) {
    this.columns = columns;
    this.rows = [];
    this.active = null;
    this.widths = columns.map((column) => column.name.length + 1);
    this.box.setAttribute("aria-colcount", String(columns.length));
    this.box.removeAttribute("aria-activedescendant");
    this.cells = columns.map((column) => element("div", {
      role: "columnheader", class: column.class === "number" ? "right" : "", text: column.name, title: column.name + ": " + column.type,
    }));
    this.body = element("div", { class: "body", role: "rowgroup" });
    const head = element("div", { class: "head", role: "row", "aria-rowindex": "1" }, ...this.cells);
    this.box.replaceChildren(head, this.body);
    this.box.scrollTo(0, 0);
  }

  add(rows) {
    const isFirst = this.rows.length === 0;
    for (const row of rows) this.rows.push(row);
    // Columns are as wide as the values that come first.
    if (this.rows.length <= 500 || isFirst) {
      for (const row of rows.slice(0, 500)) {
        row.forEach((value, at) => {
          this.widths[at] = Math.max(this.widths[at], Math.min(WIDEST, this.text(value).length));
        });
      }
      this.cells.forEach((cell, at) => (cell.style.width = this.width(at)));
      this.shown = null;
    }
    this.body.style.height = this.rows.length * HEIGHT + "px";
    this.box.setAttribute("aria-rowcount", String(this.rows.length + 1));
    this.draw();
  }

  width(at) {
    return "calc(" + this.widths[at] + "ch + 20px)";
  }

  text(value) {
    return value === null ? "null" : String(value);
  }

  draw() {
    if (!this.body) return;
    const first = Math.max(0, Math.floor(this.box.scrollTop / HEIGHT) - AROUND);
    const last = Math.min(this.rows.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / HEIGHT) + AROUND);
    const shown = first + "-" + last + "-" + this.rows.length;
    if (shown === this.shown) return;
    this.shown = shown;
    const made = [];
    // An even number at first keeps the stripes where they are.
    for (let row = first - (first % 2); row < last; row++) made.push(this.row(row));
    this.body.replaceChildren(...made);
    this.mark();
  }

  row(row) {
    const made = element("div", { class: "row", role: "row", "aria-rowindex": String(row + 2) });
    made.style.top = row * HEIGHT + "px";
    this.rows[row].forEach((value, at) => {
      const text = this.text(value);
      const of = (this.columns[at].class === "number" ? "right" : "") + (value === null ? " null" : "");
      const cell = element("div", { role: "gridcell", class: of, text: text.length > 300 ? text.slice(0, 300) + " ..." : text });
      cell.id = "cell-" + row + "-" + at;
      if (text.length > WIDEST) cell.title = text.slice(0, 2000);
      cell.style.width = this.width(at);
      made.append(cell);
    });
    return made;
  }

  mark() {
    this.body.querySelector(".active")?.classList.remove("active");
    if (!this.active) return;
    const id = "cell-" + this.active.row + "-" + this.active.column;
    const cell = document.getElementById(id);
    cell?.classList.add("active");
    if (cell) this.box.setAttribute("aria-activedescendant", id);
  }

  move(row, column) {
    if (!this.rows.length) return;
    const most = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.active = { row: most(row, this.rows.length), column: most(column, this.columns.length) };
    const top = this.active.row * HEIGHT;
    const view = this.box.clientHeight - HEIGHT - 16;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + HEIGHT > this.box.scrollTop + view) this.box.scrollTop = top + HEIGHT - view;
    this.draw();
    this.mark();
    document.getElementById("cell-" + this.active.row + "-" + this.active.column)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / HEIGHT) - 2);
    const { row, column } = this.active || { row: -1, column: 0 };
    const ends = event.ctrlKey || event.metaKey;
    const moves = {
      ArrowDown: [row + 1, column], ArrowUp: [row - 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      PageDown: [row + page, column], PageUp: [row - page, column],
      Home: [ends ? 0 : row, 0], End: [ends ? this.rows.length - 1 : row, this.columns.length - 1],
    };
    if (event.key in moves) {
      event.preventDefault();
      this.move(...moves[event.key]);
    } else if (ends && event.key.toLowerCase() === "c" && this.active && !String(getSelection())) {
      navigator.clipboard?.writeText(this.text(this.rows[this.active.row][this.active.column]));
    }
  }

  click(event) {
    const found = /^cell-(\d+)-(\d+)$/.exec(event.target.id || "");
    if (found) this.move(Number(found[1]), Number(found[2]));
  }

  // All rows, with tabs between the values.
  get tabbed() {
    const clean = (value) => (value === null ? "" : String(value).replaceAll(/[\t\r\n]/g, " "));
    const head = this.columns.map((column) => clean(column.name)).join("\t");
    return [head, ...this.rows.map((row) => row.map(clean).join("\t"))].join("\n");
  }
}
