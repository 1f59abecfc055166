// Owns: the live panel: an instrument's quotes and trades as they arrive, by server-sent events.
//
// What must hold: the page keeps a bounded number of points. What was stored before the first event is read once, up to the
// record after which the events begin, so that no record is missing or there twice.

import { Chart, clock, decimal } from "./chart.js";
import { ask, element, find, literal, milliseconds } from "./store.js";

const POINTS = 4000;
const BEFORE = 1000;
const LISTED = 12;
const AGAIN = 5000;

const least = (xs) => xs.reduce((low, x) => Math.min(low, x), xs.length ? Infinity : -Infinity);

const empty = () => ({ quotes: { xs: [], bids: [], asks: [] }, trades: { xs: [], prices: [] }, listed: [] });

export class Live {
  constructor() {
    this.chart = new Chart(find("live-chart"), "Bid, ask and trades of the instrument", "no quotes and no trades yet");
    find("live-stop").addEventListener("click", () => this.stop("Stopped."));
    this.data = empty();
  }

  watch(symbol) {
    this.stop("");
    this.symbol = symbol;
    find("live-symbol").textContent = symbol;
    find("live-stop").hidden = false;
    find("live-now").hidden = false;
    find("live-trades").hidden = false;
    // On a narrow window the panel is below.
    if (matchMedia("(max-width: 760px)").matches) find("live").scrollIntoView({ block: "start" });
    this.connect();
  }

  connect() {
    this.say("connecting");
    const source = new EventSource("/api/live?symbol=" + encodeURIComponent(this.symbol));
    this.source = source;
    this.left = 0;
    this.waiting = [];
    source.addEventListener("begin", (event) => {
      this.data = empty();
      this.waiting = [];
      this.show();
      this.before(source, JSON.parse(event.data).after);
    });
    source.addEventListener("records", (event) => {
      const records = JSON.parse(event.data);
      // Until the records before it are there.
      if (this.waiting) this.waiting = [...this.waiting.slice(-50), records];
      else this.add(records);
    });
    source.addEventListener("ended", (event) => this.say("begins again: " + JSON.parse(event.data).reason));
    source.onerror = () => {
      if (this.source !== source) return;
      const isOver = source.readyState === EventSource.CLOSED;
      this.say(isOver ? "not connected: does a storage process serve the store?" : "connecting again");
      // A browser does not come back to a server that has refused it.
      if (isOver) this.timer = setTimeout(() => this.connect(), AGAIN);
    };
  }

  // Reads the newest records up to `after`.
  async before(source, after) {
    this.say("reading the newest records");
    // With a condition on the LSN the statement would read the whole series.
    const where = " where symbol = " + literal(this.symbol) + " order by time desc limit " + BEFORE;
    const read = async (columns) => {
      const rows = [];
      const question = { sql: "select lsn, " + columns + where, at: "appended", rows: BEFORE };
      await ask(question, undefined, () => {}, (more) => rows.push(...more));
      const stored = rows.reverse().filter(([lsn]) => BigInt(lsn) <= BigInt(after));
      return stored.map(([, time, ...rest]) => [milliseconds(time), ...rest]);
    };
    try {
      const quotes = await read("time, bid_px, bid_sz, ask_px, ask_sz from quote");
      const trades = await read("time, price, size, side from trade");
      if (this.source !== source) return;
      this.add({ quotes, trades, left_out: 0, skipped: 0 });
      this.say("live, as far as it is appended");
    } catch (error) {
      this.say("the records before now cannot be read: " + error.message);
    }
    const waiting = this.waiting || [];
    this.waiting = null;
    waiting.forEach((records) => this.add(records));
  }

  add({ quotes, trades, left_out, skipped }) {
    const { data } = this;
    for (const [time, bid, bidSize, ask, askSize] of quotes) {
      data.quotes.xs.push(time);
      data.quotes.bids.push(bid);
      data.quotes.asks.push(ask);
      this.quote = { bid, bidSize, ask, askSize };
    }
    for (const [time, price, size, side] of trades) {
      data.trades.xs.push(time);
      data.trades.prices.push(price);
      data.listed.unshift({ time, price, size, side });
    }
    data.listed.length = Math.min(data.listed.length, LISTED);
    for (const list of [...Object.values(data.quotes), ...Object.values(data.trades)]) {
      if (list.length > POINTS) list.splice(0, list.length - POINTS);
    }
    this.left += left_out;
    if (skipped) this.say("live; some records came too fast to be looked at");
    // Not a part of the status: it would be read aloud ten times a second.
    find("live-left").textContent = this.left ? this.left + " quotes and trades came too fast to be shown" : "";
    this.show();
  }

  show() {
    const { quotes, trades, listed } = this.data;
    // The curves begin at the same time, and go by time: records may arrive in another order.
    const from = Math.max(least(quotes.xs), least(trades.xs));
    const since = (xs, ys) => {
      const places = [...xs.keys()].filter((at) => xs[at] >= from);
      if (places.some((at, index) => index > 0 && xs[places[index - 1]] > xs[at])) places.sort((one, other) => xs[one] - xs[other]);
      return { xs: places.map((at) => xs[at]), ys: places.map((at) => ys[at]) };
    };
    const series = [
      { name: "trade", ...since(trades.xs, trades.prices), colour: "--series-7", shape: "points" },
      { name: "bid  ", ...since(quotes.xs, quotes.bids), colour: "--series-0", shape: "step" },
      { name: "ask  ", ...since(quotes.xs, quotes.asks), colour: "--series-1", shape: "step" },
    ];
    this.chart.set({ series });
    const pair = (id, price, size) => {
      find(id).textContent = price === null || price === undefined ? "-" : decimal(price);
      find(id + "-size").textContent = size === null || size === undefined ? "" : "x " + decimal(size);
    };
    const quote = quotes.xs.length ? this.quote : {};
    pair("live-bid", quote.bid, quote.bidSize);
    pair("live-ask", quote.ask, quote.askSize);
    pair("live-trade", listed[0]?.price, listed[0]?.size);
    const rows = listed.map(({ time, price, size, side }) => element("tr", {},
      element("td", { text: clock(time, 1) }), element("td", { text: decimal(price) }), element("td", { text: decimal(size) }),
      element("td", { text: side || "", class: side === "A" || side === "B" ? side : "" })));
    find("live-trades").tBodies[0].replaceChildren(...rows);
  }

  say(text) {
    if (find("live-state").textContent !== text) find("live-state").textContent = text;
  }

  stop(text) {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    find("live-stop").hidden = true;
    this.say(text);
  }
}
