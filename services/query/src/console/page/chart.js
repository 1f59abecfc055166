// Owns: charts on a canvas: lines, points and candles over a time or a number, with axes and a readout.
//
// What must hold: drawing takes time by the pixels of the chart and not by its points. The readout follows the pointer and the
// arrow keys.

import { element } from "./store.js";

const EDGE = { left: 64, right: 14, top: 10, bottom: 26 };
const FONT = "11px system-ui, sans-serif";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// About `count` round steps between `low` and `high`.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return { step: 1, at: [low] };
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((of) => of * power).find((of) => of >= rough * 0.999);
  const at = [];
  for (let n = Math.ceil(low / step); n * step <= high && at.length < 50; n++) at.push(n * step);
  return { step, at };
}

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5,
  108e5, 216e5, 432e5, 864e5, 1728e5, 6048e5, 26784e5, 80352e5, 31536e6];

function timeTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const step = rough > 31536e6 ? 31536e6 * Math.floor(rough / 31536e6) : STEPS.findLast((of) => of <= rough) || 1;
  const at = [];
  for (let n = Math.ceil(low / step); n * step <= high && at.length < 50; n++) at.push(n * step);
  return { step, at };
}

// A time as far as `step` needs it.
export function clock(ms, step) {
  const text = new Date(ms).toISOString();
  if (step >= 864e5) return text.slice(0, 10);
  if (step >= 6e4) return text.slice(11, 16);
  if (step >= 1e3) return text.slice(11, 19);
  return text.slice(11, 23);
}

export function decimal(value, step) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const size = Math.abs(value);
  if (size >= 1e7 || (size > 0 && size < 1e-6)) return value.toPrecision(6).replace(/\.?0+(e|$)/, "$1");
  const digits = step ? Math.max(0, Math.min(9, Math.ceil(-Math.log10(step) + 0.3))) : 9;
  const text = value.toFixed(digits);
  return step || !text.includes(".") ? text : text.replace(/\.?0+$/, "");
}

// The place of the first value of `sorted` that is not below `value`.
function below(sorted, value) {
  let [from, to] = [0, sorted.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (sorted[middle] < value) from = middle + 1;
    else to = middle;
  }
  return from;
}

export class Chart {
  // `empty` is the text of a chart without points.
  constructor(box, label, empty) {
    this.box = box;
    this.empty = empty;
    this.canvas = element("canvas", { tabindex: "0", role: "img", "aria-label": label });
    this.readout = element("div", { class: "readout", role: "status", "aria-live": "polite", hidden: true });
    box.replaceChildren(this.canvas, this.readout);
    this.series = [];
    this.candles = null;
    this.isTime = true;
    this.at = null;
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // `series`: { name, xs, ys, colour, shape: "line" | "step" | "points" }, by x. `candles`: { xs, open, high, low, close } or null.
  set({ series = [], candles = null, isTime = true }) {
    this.series = series;
    this.candles = candles;
    this.isTime = isTime;
    this.draw();
  }

  get places() {
    const all = this.candles ? [this.candles.xs] : this.series.map((series) => series.xs);
    return all.reduce((longest, xs) => (xs.length > longest.length ? xs : longest), []);
  }

  key(event) {
    const xs = this.places;
    if (!xs.length) return;
    const at = this.at === null ? xs.length - 1 : Math.min(xs.length - 1, below(xs, this.at));
    const far = Math.max(1, Math.round(xs.length / 20));
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - far, PageDown: at + far, Home: 0, End: xs.length - 1 };
    if (event.key in moves) {
      event.preventDefault();
      this.at = xs[Math.max(0, Math.min(xs.length - 1, moves[event.key]))];
      this.draw();
    } else if (event.key === "Escape") this.point(null);
  }

  point(offset) {
    this.at = null;
    if (offset !== null && this.scale) {
      const x = this.scale.value(offset);
      const xs = this.places;
      const after = below(xs, x);
      const before = Math.max(0, after - 1);
      const near = after < xs.length && xs[after] - x < x - xs[before] ? after : before;
      this.at = xs.length ? xs[near] : null;
    }
    this.draw();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      this.paint();
    });
  }

  // The least and the greatest x and y.
  bounds() {
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    const add = (xs, ...all) => {
      if (!xs.length) return;
      left = Math.min(left, xs[0]);
      right = Math.max(right, xs[xs.length - 1]);
      for (const ys of all) {
        for (const y of ys) {
          if (y === null) continue;
          if (y < low) low = y;
          if (y > high) high = y;
        }
      }
    };
    if (this.candles) add(this.candles.xs, this.candles.low, this.candles.high);
    for (const { xs, ys } of this.series) add(xs, ys);
    return { left, right, low, high };
  }

  paint() {
    const { clientWidth: width, clientHeight: height } = this.box;
    const ratio = window.devicePixelRatio || 1;
    if (!width || !height) return;
    const [wide, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== wide || this.canvas.height !== tall) [this.canvas.width, this.canvas.height] = [wide, tall];
    const to = this.canvas.getContext("2d");
    to.setTransform(ratio, 0, 0, ratio, 0, 0);
    to.clearRect(0, 0, width, height);
    to.font = FONT;
    const bounds = this.bounds();
    if (!Number.isFinite(bounds.left) || !Number.isFinite(bounds.low)) {
      this.scale = null;
      this.readout.hidden = true;
      to.fillStyle = colour("--muted");
      to.textAlign = "center";
      to.fillText(this.empty, width / 2, height / 2, width - 16);
      return;
    }
    this.axes(to, width, height, bounds);
    to.save();
    to.beginPath();
    to.rect(EDGE.left, EDGE.top, width - EDGE.left - EDGE.right, height - EDGE.top - EDGE.bottom);
    to.clip();
    if (this.candles) this.paintCandles(to);
    for (const series of this.series) this.paintSeries(to, series);
    to.restore();
    this.paintReadout(to, height);
  }

  axes(to, width, height, { left, right, low, high }) {
    let room = right - left || 1;
    if (this.candles) room += room / Math.max(1, this.candles.xs.length - 1 || 1);
    const middle = (left + right) / 2;
    [left, right] = [middle - room / 2, middle + room / 2];
    const air = (high - low) * 0.06 || Math.abs(high) * 0.01 || 1;
    [low, high] = [low - air, high + air];
    const inside = { wide: width - EDGE.left - EDGE.right, tall: height - EDGE.top - EDGE.bottom };
    const x = (value) => EDGE.left + ((value - left) / (right - left)) * inside.wide;
    const y = (value) => EDGE.top + (1 - (value - low) / (high - low)) * inside.tall;
    const value = (offset) => left + ((offset - EDGE.left) / inside.wide) * (right - left);
    const ys = ticks(low, high, Math.max(2, Math.floor(inside.tall / 45)));
    const count = Math.max(2, Math.floor(inside.wide / 95));
    const xs = this.isTime ? timeTicks(left, right, count) : ticks(left, right, count);
    this.scale = { x, y, value, xStep: xs.step, yStep: ys.step, width };
    to.strokeStyle = colour("--line");
    to.fillStyle = colour("--muted");
    to.lineWidth = 1;
    to.textBaseline = "middle";
    to.textAlign = "right";
    for (const at of ys.at) {
      const place = Math.round(y(at)) + 0.5;
      to.beginPath();
      to.moveTo(EDGE.left, place);
      to.lineTo(width - EDGE.right, place);
      to.stroke();
      to.fillText(decimal(at, ys.step), EDGE.left - 6, place, EDGE.left - 8);
    }
    to.textBaseline = "alphabetic";
    to.textAlign = "center";
    let free = 0;
    for (const at of xs.at) {
      const place = Math.round(x(at)) + 0.5;
      to.beginPath();
      to.moveTo(place, height - EDGE.bottom);
      to.lineTo(place, height - EDGE.bottom + 4);
      to.stroke();
      const text = this.isTime ? clock(at, xs.step) : decimal(at, xs.step);
      const half = to.measureText(text).width / 2;
      const middle = Math.min(Math.max(place, half + 2), width - half - 2);
      if (middle - half < free) continue;
      free = middle + half + 8;
      to.fillText(text, middle, height - 8);
    }
  }

  paintSeries(to, { xs, ys, colour: name, shape }) {
    const { x, y } = this.scale;
    to.strokeStyle = to.fillStyle = colour(name);
    to.lineWidth = 1.5;
    to.lineJoin = "round";
    if (shape === "points") {
      // One point of a place is enough.
      let last = "";
      for (let i = 0; i < xs.length; i++) {
        if (ys[i] === null) continue;
        const [px, py] = [Math.round(x(xs[i])), Math.round(y(ys[i]))];
        if (px + "," + py === last) continue;
        last = px + "," + py;
        to.fillRect(px - 2, py - 2, 4, 4);
      }
      return;
    }
    to.beginPath();
    let [column, isOpen, count] = [null, false, 0];
    let [least, most, end] = [0, 0, 0];
    const close = () => {
      if (column === null) return;
      to.lineTo(column, y(least));
      to.lineTo(column, y(most));
      to.lineTo(column, y(end));
    };
    for (let i = 0; i < xs.length; i++) {
      const value = ys[i];
      if (value === null) {
        close();
        [column, isOpen] = [null, false];
        continue;
      }
      const place = Math.round(x(xs[i]) * 2) / 2;
      count++;
      if (place !== column) {
        close();
        if (!isOpen) to.moveTo(place, y(value));
        else if (shape === "step") to.lineTo(place, y(end));
        [column, isOpen, least, most, end] = [place, true, value, value, value];
      }
      // Of the values of one column of pixels, the least, the greatest and the last.
      least = Math.min(least, value);
      most = Math.max(most, value);
      end = value;
    }
    close();
    to.stroke();
    if (count === 1) to.fillRect(x(xs[0]) - 2, y(ys.find((value) => value !== null)) - 2, 4, 4);
  }

  paintCandles(to) {
    const { x, y } = this.scale;
    const { xs, open, high, low, close } = this.candles;
    const step = xs.length > 1 ? (x(xs[xs.length - 1]) - x(xs[0])) / (xs.length - 1) : 20;
    const half = Math.max(0.5, Math.min(9, step * 0.36));
    const [up, down] = [colour("--up"), colour("--down")];
    to.lineWidth = 1;
    for (let i = 0; i < xs.length; i++) {
      if ([open[i], high[i], low[i], close[i]].includes(null)) continue;
      to.strokeStyle = to.fillStyle = close[i] >= open[i] ? up : down;
      const place = Math.round(x(xs[i])) + 0.5;
      to.beginPath();
      to.moveTo(place, y(high[i]));
      to.lineTo(place, y(low[i]));
      to.stroke();
      const top = y(Math.max(open[i], close[i]));
      to.fillRect(place - half, top, half * 2, Math.max(1, y(Math.min(open[i], close[i])) - top));
    }
  }

  paintReadout(to, height) {
    if (this.at === null || !this.places.length) {
      this.readout.hidden = true;
      return;
    }
    const { x, y, yStep, xStep } = this.scale;
    const at = this.at;
    to.strokeStyle = colour("--muted");
    to.setLineDash([3, 3]);
    to.beginPath();
    to.moveTo(Math.round(x(at)) + 0.5, EDGE.top);
    to.lineTo(Math.round(x(at)) + 0.5, height - EDGE.bottom);
    to.stroke();
    to.setLineDash([]);
    const lines = [this.isTime ? new Date(at).toISOString().replace("T", " ") : decimal(at, xStep / 10)];
    if (this.candles) {
      const i = Math.min(below(this.candles.xs, at), this.candles.xs.length - 1);
      for (const of of ["open", "high", "low", "close"]) lines.push(of.padEnd(6) + decimal(this.candles[of][i]));
    }
    for (const { name, xs, ys, colour: of } of this.series) {
      // The newest value at or before the place.
      let i = below(xs, at);
      if (i >= xs.length || xs[i] > at) i--;
      if (i < 0 || ys[i] === null) continue;
      lines.push(name + " " + decimal(ys[i], yStep / 1000).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));
      to.fillStyle = colour(of);
      to.beginPath();
      to.arc(x(xs[i]), y(ys[i]), 3.5, 0, 7);
      to.fill();
    }
    this.readout.textContent = lines.join("\n");
    this.readout.hidden = false;
    // Where it hides nothing that is pointed at.
    const isRight = x(at) < this.scale.width / 2;
    this.readout.style.left = isRight ? "auto" : EDGE.left + 6 + "px";
    this.readout.style.right = isRight ? EDGE.right + 2 + "px" : "auto";
  }
}
