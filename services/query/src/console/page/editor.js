// Owns: the editor of a statement: completion of words, and of instruments within quotes.
//
// What must hold: the keyboard is never caught: Tab completes only while completions are open, and leaves the editor otherwise.

import { element, get } from "./store.js";

const MOST = 50;
const CELL = { padding: 12, top: 10, line: 19 };

export class Editor {
  constructor(area, list, run) {
    this.area = area;
    this.list = list;
    this.words = [];
    this.offers = [];
    this.chosen = -1;
    this.asked = 0;
    this.isMoved = false;
    area.addEventListener("input", () => this.complete(false));
    area.addEventListener("keydown", (event) => this.key(event, run));
    area.addEventListener("blur", () => this.close());
    area.addEventListener("click", () => this.close());
    area.addEventListener("scroll", () => this.list.hidden || this.place(this.offers[0].from));
    list.addEventListener("mousedown", (event) => event.preventDefault());
  }

  // Words of the store: { text, of, insert }.
  setWords(words) {
    this.words = words;
  }

  // The selected part, or the whole text.
  get statement() {
    const { selectionStart, selectionEnd, value } = this.area;
    const selected = value.slice(selectionStart, selectionEnd);
    return selected.trim() ? selected : value;
  }

  // Inserts at the cursor, with a space before it where one is needed.
  insert(text) {
    this.area.focus();
    const before = this.area.value.slice(0, this.area.selectionStart);
    const gap = before && !/[\s(.,'"]$/.test(before) ? " " : "";
    this.put(this.area.selectionStart, this.area.selectionEnd, gap + text);
    this.close();
  }

  put(from, to, text) {
    this.area.setSelectionRange(from, to);
    // This command keeps the browser's undo; where it is not there, the text is set.
    if (!document.execCommand("insertText", false, text)) this.area.setRangeText(text, from, to, "end");
  }

  key(event, run) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.close();
      run();
      return;
    }
    if (event.key === " " && event.ctrlKey) {
      event.preventDefault();
      this.complete(true);
      return;
    }
    if (this.list.hidden) return;
    const count = this.offers.length;
    const page = 8;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in moves) {
      event.preventDefault();
      this.isMoved = true;
      const next = this.chosen + moves[event.key];
      const isStep = Math.abs(moves[event.key]) === 1;
      this.choose(isStep ? (next + count) % count : Math.min(count - 1, Math.max(0, next)));
    } else if (event.key === "Tab" && !event.shiftKey) {
      event.preventDefault();
      this.accept(this.chosen);
    } else if (event.key === "Enter" && this.isMoved) {
      event.preventDefault();
      this.accept(this.chosen);
    } else if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      this.close();
    }
  }

  // What the cursor is in: a text in quotes, or a word.
  context() {
    const before = this.area.value.slice(0, this.area.selectionStart);
    // As the prompt of tape sql: a text that is not closed is an instrument.
    if (before.split("'").length % 2 === 0) {
      const from = before.lastIndexOf("'") + 1;
      return { isText: true, from, begun: before.slice(from) };
    }
    const begun = /[A-Za-z_][A-Za-z0-9_]*$/.exec(before)?.[0] || "";
    return { isText: false, from: before.length - begun.length, begun, before };
  }

  async complete(isWanted) {
    const context = this.context();
    const number = ++this.asked;
    let found;
    if (context.isText) {
      if (context.begun.includes("\n")) return this.close();
      try {
        const path = "/api/symbols?limit=" + MOST + "&prefix=" + encodeURIComponent(context.begun);
        const { symbols } = await get(path);
        found = symbols.map((text) => ({ text, of: "instrument", insert: text + "'" }));
      } catch {
        return this.close();
      }
      // The text has changed in the meantime.
      if (number !== this.asked) return undefined;
    } else {
      if (!context.begun && !isWanted) return this.close();
      found = this.matching(context);
    }
    if (!found.length || (found.length === 1 && found[0].text === context.begun)) return this.close();
    return this.open(found, context.from);
  }

  matching({ begun, before }) {
    const low = begun.toLowerCase();
    const found = this.words.filter((word) => word.text.toLowerCase().startsWith(low));
    const isTable = /\b(from|join)\s+[a-z0-9_]*$/i.test(before);
    const named = new Set(this.area.value.toLowerCase().match(/[a-z_][a-z0-9_]*/g) || []);
    const rank = (word) => {
      if (word.of === "table") return isTable ? 0 : 2;
      if (word.tables) return word.tables.some((table) => named.has(table)) ? 1 : 4;
      return word.of === "keyword" ? 3 : 5;
    };
    return found.map((word) => [rank(word), word]).sort((a, b) => a[0] - b[0]).slice(0, MOST).map(([, word]) => word);
  }

  open(found, from) {
    this.offers = found.map((offer) => ({ ...offer, from }));
    this.isMoved = false;
    this.list.replaceChildren(...found.map((offer, at) => {
      const item = element("li", { role: "option", id: "offer-" + at, "aria-selected": "false" },
        element("span", { text: offer.text }), element("span", { class: "muted", text: offer.of }));
      item.addEventListener("click", () => this.accept(at));
      return item;
    }));
    this.list.hidden = false;
    this.place(from);
    this.choose(0);
    this.area.setAttribute("aria-expanded", "true");
  }

  // Below the word that is completed: all characters have one width.
  place(from) {
    const lines = this.area.value.slice(0, from).split("\n");
    this.ruler ||= document.createElement("canvas").getContext("2d");
    this.ruler.font = getComputedStyle(this.area).font;
    const width = this.ruler.measureText("0").width;
    const left = CELL.padding + lines[lines.length - 1].length * width - this.area.scrollLeft;
    const top = CELL.top + lines.length * CELL.line - this.area.scrollTop + 2;
    const room = this.area.clientWidth - this.list.offsetWidth - 4;
    this.list.style.left = Math.max(2, Math.min(left, room)) + "px";
    this.list.style.top = Math.min(top, this.area.clientHeight) + "px";
  }

  choose(at) {
    const items = this.list.children;
    items[this.chosen]?.setAttribute("aria-selected", "false");
    this.chosen = at;
    items[at]?.setAttribute("aria-selected", "true");
    items[at]?.scrollIntoView({ block: "nearest" });
    this.area.setAttribute("aria-activedescendant", "offer-" + at);
  }

  accept(at) {
    const offer = this.offers[at];
    if (!offer) return;
    this.close();
    this.put(offer.from, this.area.selectionStart, offer.insert);
    this.asked++;
    this.close();
  }

  close() {
    this.asked++;
    this.list.hidden = true;
    this.offers = [];
    this.chosen = -1;
    this.area.setAttribute("aria-expanded", "false");
    this.area.removeAttribute("aria-activedescendant");
  }
}
