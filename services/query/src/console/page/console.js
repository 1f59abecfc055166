// Owns: the page: what runs a statement, what is listed at the side, the tabs of a result, and the store's state.
//
// What must hold: one statement runs at a time; the page asks for the store's state once a second while it is seen.

import { Chart } from "./chart.js";
import { Editor } from "./editor.js";
import { Grid } from "./grid.js";
import { Live } from "./live.js";
import { ask, duration, element, find, get, milliseconds, name, literal, short, stop } from "./store.js";

const FIRST = "select symbol, time, price, size\nfrom trade\norder by time desc\nlimit 200";
const SERIES = 8;
// Columns of numbers that are seldom meant.
const META = /^(lsn|source|publisher|sequence|trade_id|order_id|number|flags|depth|ts_in_delta|variant)$|_raw$|_ct$|_ct_/;
const PRICES = /(^|_)(px|price|open|high|low|close|vwap|mid|bid|ask|avg|last|first|edge|spread)/;

const grid = new Grid(find("grid"));
const chart = new Chart(find("chart"), "Chart of the answer", "nothing to draw: a chart needs a column of numbers");
const live = new Live();
const editor = new Editor(find("sql"), find("offers"), () => run());
let running = null;

// --- statements

function outcome(text, isWarning) {
  find("outcome").textContent = text;
  find("outcome").className = isWarning ? "warn" : "";
}

function fail(text) {
  find("error").textContent = text;
  find("error").hidden = !text;
}

async function run() {
  running?.abort();
  const abort = new AbortController();
  running = abort;
  const isMine = () => running === abort;
  const sql = editor.statement;
  try {
    sessionStorage.setItem("sql", find("sql").value);
  } catch {
    // A browser that stores nothing forgets the statement.
  }
  find("cancel").disabled = false;
  find("copy").disabled = true;
  fail("");
  outcome("running");
  grid.clear("");
  choose([], []);
  const question = { sql, at: find("at").value, rows: Number(find("rows").value) };
  try {
    const end = await ask(question, abort.signal,
      (columns) => isMine() && grid.begin(columns),
      (rows) => {
        if (!isMine()) return;
        grid.add(rows);
        outcome(grid.rows.length + " rows so far");
      });
    if (!isMine()) return;
    const cut = { rows: "the answer has more rows", bytes: "the answer has more rows, and is too long to send" }[end.truncated];
    const parts = [end.rows + (end.rows === 1 ? " row" : " rows"), duration(end.seconds)];
    if (cut) parts.push(cut);
    if (end.shortened) parts.push(end.shortened + " long values are shortened");
    outcome(parts.join(", "), cut || end.shortened);
    if (!grid.rows.length) grid.box.append(element("p", { class: "empty", text: "The answer has no rows." }));
    find("copy").disabled = !grid.rows.length;
    choose(grid.columns, grid.rows);
  } catch (error) {
    if (!isMine()) return;
    const isCancelled = error.name === "AbortError";
    outcome(isCancelled ? "cancelled" : "no answer");
    if (!isCancelled) {
      fail(error instanceof TypeError ? "the server cannot be reached: " + error.message : error.message);
      if (!grid.rows.length) grid.clear("");
    }
  } finally {
    if (isMine()) {
      running = null;
      find("cancel").disabled = true;
    }
  }
}

find("run").addEventListener("click", run);
find("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
find("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(grid.tabbed);
    outcome(grid.rows.length + " rows are copied, with tabs between the values");
  } catch (error) {
    outcome("the browser does not copy: " + error.message, true);
  }
});

// --- tabs

const tabs = ["grid", "chart"];
function open(tab) {
  for (const other of tabs) {
    find("tab-" + other).setAttribute("aria-selected", String(other === tab));
    find("tab-" + other).tabIndex = other === tab ? 0 : -1;
    find("panel-" + other).hidden = other !== tab;
  }
  if (tab === "chart") chart.draw();
  else grid.draw();
}
tabs.forEach((tab, at) => {
  find("tab-" + tab).addEventListener("click", () => open(tab));
  find("tab-" + tab).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const next = tabs[(at + 1) % tabs.length];
    open(next);
    find("tab-" + next).focus();
  });
});

// --- the chart of an answer

const number = (value) => {
  if (value === null || value === "") return null;
  const is = Number(value);
  return Number.isFinite(is) ? is : null;
};

// Offers what can be drawn of an answer.
function choose(columns, rows) {
  const box = find("chart-choice");
  const place = (of) => columns.findIndex((column) => column.name === of);
  const bars = ["open", "high", "low", "close"].map(place);
  const times = columns.map((column, at) => (column.class === "time" ? at : -1)).filter((at) => at >= 0);
  const x = times.includes(place("time")) ? place("time") : times[0] ?? -1;
  const numbers = columns.map((column, at) => (column.class === "number" && at !== x ? at : -1)).filter((at) => at >= 0);
  if (!rows.length || !numbers.length) {
    box.replaceChildren();
    box.hidden = true;
    chart.set({});
    return;
  }
  box.hidden = false;
  const group = columns.findIndex((column) => column.name === "symbol");
  const hasBars = bars.every((at) => at >= 0);
  const wanted = numbers.filter((at) => PRICES.test(columns[at].name) && !META.test(columns[at].name));
  const usual = numbers.filter((at) => !META.test(columns[at].name));
  const first = (wanted.length ? wanted : usual.length ? usual : numbers).slice(0, 4);
  const names = group >= 0 ? [...new Set(rows.map((row) => row[group]))] : [null];
  const boxes = numbers.map((at) => {
    const input = element("input", { type: "checkbox", checked: first.includes(at) });
    input.addEventListener("change", draw);
    return { at, input, label: element("label", {}, input, columns[at].name) };
  });
  const kind = element("select", {}, ...(hasBars ? [element("option", { value: "candles", text: "candles" })] : []),
    element("option", { value: "line", text: "lines" }), element("option", { value: "points", text: "points" }));
  const which = element("select", {}, ...names.slice(0, 500).map((text, at) => element("option", { value: String(at), text: text ?? "null" })));
  if (names.length > 1) which.prepend(element("option", { value: "all", text: "all" }));
  // More lines than there are colours are no help.
  which.selectedIndex = names.length > SERIES ? 1 : 0;
  kind.addEventListener("change", draw);
  which.addEventListener("change", draw);
  const parts = [element("label", {}, "as ", kind)];
  if (group >= 0) parts.push(element("label", {}, "symbol ", which));
  const note = element("span", { class: "muted small" });
  box.replaceChildren(...parts, ...boxes.map(({ label }) => label), note);
  draw();

  function draw() {
    const isBars = kind.value === "candles";
    for (const { label } of boxes) label.hidden = isBars;
    // Candles are of one instrument.
    if (isBars && which.value === "all") which.value = "0";
    const meant = group < 0 || which.value === "all" ? names : [names[Number(which.value)]];
    const drawn = (symbol) => {
      const mine = symbol === null && group < 0 ? rows : rows.filter((row) => row[group] === symbol);
      const points = mine.map((row, at) => [x >= 0 ? milliseconds(row[x]) : at, row]).filter(([at]) => at !== null);
      return points.sort((a, b) => a[0] - b[0]);
    };
    if (isBars) {
      const points = drawn(meant[0]);
      const of = (at) => points.map(([, row]) => number(row[bars[at]]));
      const candles = { xs: points.map(([at]) => at), open: of(0), high: of(1), low: of(2), close: of(3) };
      note.textContent = "";
      legend.replaceChildren();
      chart.set({ candles, isTime: x >= 0 });
      return;
    }
    const checked = boxes.filter(({ input }) => input.checked);
    const series = [];
    for (const symbol of meant) {
      if (series.length >= SERIES || !checked.length) break;
      const points = drawn(symbol);
      const xs = points.map(([at]) => at);
      for (const { at } of checked) {
        const label = meant.length > 1 ? (symbol ?? "null") + " " + columns[at].name : columns[at].name;
        series.push({ name: label, xs, ys: points.map(([, row]) => number(row[at])), shape: kind.value, colour: "--series-" + (series.length % SERIES) });
        if (series.length >= SERIES) break;
      }
    }
    const swatch = (name, of) => {
      const made = element("span", { class: "swatch" });
      made.style.background = "var(" + of + ")";
      return element("label", { class: "small" }, made, name);
    };
    const all = meant.length * checked.length;
    note.replaceChildren(...(all > series.length ? [series.length + " of " + all + " lines"] : []));
    legend.replaceChildren(...series.map((one) => swatch(one.name, one.colour)), note);
    if (!legend.isConnected) box.append(legend);
    chart.set({ series, isTime: x >= 0 });
  }
}
const legend = element("div", { class: "bar choice" });

// --- tables and instruments

function table({ name: of, system, columns }) {
  const use = element("button", { type: "button", text: of, class: system ? "system" : "", title: "insert " + of });
  use.addEventListener("click", (event) => {
    event.preventDefault();
    editor.insert(name(of));
  });
  const list = element("ul", {}, ...columns.map((column) => {
    const insert = element("button", { type: "button", title: "insert " + column.name },
      element("span", { text: column.name }), element("span", { class: "muted", text: column.type }));
    insert.addEventListener("click", () => editor.insert(name(column.name)));
    return element("li", {}, insert);
  }));
  const details = element("details", {}, element("summary", { "aria-label": "columns of " + of }, use), list);
  return element("li", {}, details);
}

async function catalog() {
  const [{ tables }, { keywords, functions }] = await Promise.all([get("/api/tables"), get("/api/words")]);
  find("tables").replaceChildren(...tables.map(table));
  stop(find("tables"));
  const columns = new Map();
  for (const { name: of, columns: all } of tables) {
    for (const column of all) columns.set(column.name, [...(columns.get(column.name) || []), of]);
  }
  editor.setWords([
    ...tables.map(({ name: of }) => ({ text: of, of: "table", insert: name(of) })),
    ...[...columns].map(([of, all]) => ({ text: of, of: all.length > 2 ? "column" : "column of " + all.join(", "), insert: name(of), tables: all })),
    ...keywords.map((text) => ({ text, of: "keyword", insert: text })),
    ...functions.map((text) => ({ text, of: "function", insert: text + "(" })),
  ]);
}

async function instruments() {
  const filter = find("symbols-filter").value;
  const { symbols, more, count } = await get("/api/symbols?limit=200&contains=" + encodeURIComponent(filter));
  if (filter !== find("symbols-filter").value) return;
  find("symbols-count").textContent = "(" + count + ")";
  find("symbols-more").textContent = more ? "the first " + symbols.length + "; type to filter" : symbols.length ? "" : "none";
  find("symbols").replaceChildren(...symbols.map((symbol) => {
    const watch = element("button", { type: "button", class: "name", text: symbol, title: "watch " + symbol, "aria-pressed": String(symbol === live.symbol) });
    watch.addEventListener("click", () => {
      find("symbols").querySelector("[aria-pressed=true]")?.setAttribute("aria-pressed", "false");
      watch.setAttribute("aria-pressed", "true");
      live.watch(symbol);
    });
    const insert = element("button", { type: "button", text: "+", title: "insert " + symbol, "aria-label": "insert " + symbol });
    insert.addEventListener("click", () => editor.insert(literal(symbol)));
    return element("li", {}, watch, insert);
  }));
  stop(find("symbols"));
}

let typed = null;
find("symbols-filter").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => instruments().catch(() => {}), 120);
});

// --- the store's state

let last = null;
let known = null;

function state(text, of) {
  find("state").className = "state " + of;
  // It is read aloud when it changes.
  if (find("state-text").textContent !== text) find("state-text").textContent = text;
}

function show(health) {
  const { watermarks, lag, trouble } = health;
  state(trouble ? trouble.reason + ". " + trouble.advice : "serving " + health.store, trouble ? "bad" : "good");
  const passed = last ? health.seconds - last.seconds : 0;
  const rate = passed > 0 && health.records >= last.records ? (health.records - last.records) / passed : null;
  const bytes = passed > 0 && health.bytes >= last.bytes ? (health.bytes - last.bytes) / passed : null;
  last = health;
  const items = [
    ["appended", String(watermarks.appended), "LSN of the last record in the log"],
    ["records/s", rate === null ? "-" : short(rate), "records that were appended in the last second"],
    ["bytes/s", bytes === null ? "-" : short(bytes), "bytes of them in the log"],
    ["not durable", short(lag.durable), "records that are not on this host's disk yet; the last durable LSN is " + watermarks.durable, lag.durable > 100000],
    ["not committed", short(lag.committed), "records that a failure may take back; the last committed LSN is " + watermarks.committed, lag.committed > 100000],
    ["not flushed", short(lag.flushed), "records in MemTables; the last flushed LSN is " + watermarks.flushed],
    ["newest", health.newest_age === null ? "-" : duration(health.newest_age) + " ago", "when storage accepted the last record: " + health.newest],
    ["publishers", String(health.publishers.length), health.publishers.map((of) => "publisher " + of.publisher + ", process " + (of.pid ?? "?") + ": " + of.accepted + " accepted, " + of.committed + " committed").join("\n") || "none is attached"],
  ];
  find("health").replaceChildren(...items.map(([label, value, title, isBad]) => element("div", { title },
    element("dt", { text: label }), element("dd", { text: value, class: isBad ? "warn" : "" }))));
  const now = health.instruments + "/" + health.kinds;
  if (known !== null && known !== now) refresh();
  known = now;
}

function refresh() {
  catalog().catch((error) => fail(error.message));
  instruments().catch((error) => fail(error.message));
}

async function watch() {
  if (!document.hidden) {
    try {
      show(await get("/api/health"));
    } catch (error) {
      last = null;
      state(error instanceof TypeError ? "the server cannot be reached" : error.message, "bad");
    }
  }
  setTimeout(watch, 1000);
}

try {
  find("sql").value = sessionStorage.getItem("sql") || FIRST;
} catch {
  find("sql").value = FIRST;
}
refresh();
watch();
if (matchMedia("(max-width: 760px)").matches) find("tables-box").open = false;
