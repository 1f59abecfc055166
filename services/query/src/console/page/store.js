// Owns: requests to the server, and the making of elements.
//
// What must hold: every text enters the page by textContent. A statement's rows are read as they come.

export function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const find = (id) => document.getElementById(id);

// A list is one stop of the Tab key: up and down go from row to row, left and right within a row.
export function stop(list) {
  const all = () => [...list.querySelectorAll("summary, button")].filter((item) => item.offsetParent !== null);
  const row = (item) => item.closest("summary, li");
  const enter = (item) => {
    for (const other of list.querySelectorAll("summary, button")) other.tabIndex = -1;
    if (item) item.tabIndex = 0;
  };
  if (!list.dataset.stop) {
    list.dataset.stop = "1";
    list.addEventListener("focusin", (event) => enter(event.target));
    list.addEventListener("keydown", (event) => {
      const items = all();
      const at = items.indexOf(document.activeElement);
      const firsts = items.filter((item, index) => index === 0 || row(item) !== row(items[index - 1]));
      const rowAt = firsts.findLastIndex((item) => items.indexOf(item) <= at);
      const next = {
        ArrowDown: firsts[rowAt + 1], ArrowUp: firsts[rowAt - 1], ArrowRight: items[at + 1], ArrowLeft: items[at - 1],
        Home: firsts[0], End: firsts[firsts.length - 1],
      };
      if (at < 0 || !(event.key in next)) return;
      event.preventDefault();
      next[event.key]?.focus();
    });
  }
  enter(all()[0]);
}

export async function get(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  const answer = await response.json().catch(() => ({ error: "the server's answer is not JSON" }));
  if (!response.ok) throw new Error(answer.error || "the server has refused the request");
  return answer;
}

// Runs one statement. `begin` gets the columns, `more` some rows; returns the end.
export async function ask(question, signal, begin, more) {
  const response = await fetch("/api/query", {
    method: "POST",
    headers: { "content-type": "application/json", "x-tape-console": "1" },
    body: JSON.stringify(question),
    signal,
  });
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || "the server has refused the statement");
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let end = null;
  for (;;) {
    const { value, done } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const part = JSON.parse(line);
      if (part.error) throw new Error(part.error);
      if (part.columns) begin(part.columns, part.last);
      if (part.rows) more(part.rows);
      if (part.end) end = part.end;
    }
    if (done) break;
  }
  if (!end) throw new Error("the answer has broken off: the server has stopped, or the connection is lost");
  return end;
}

export const literal = (text) => "'" + text.replaceAll("'", "''") + "'";

// A name as SQL needs it.
export const name = (text) => (/^[a-z_][a-z0-9_]*$/.test(text) ? text : '"' + text.replaceAll('"', '""') + '"');

// 12345678 as 12.3 M.
export function short(value) {
  const size = Math.abs(value);
  if (size < 10000) return String(Math.round(value * 10) / 10);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return (value / unit).toPrecision(3) + " " + letter;
  }
  return String(value);
}

export function duration(seconds) {
  if (seconds < 1) return Math.max(0, Math.round(seconds * 1000)) + " ms";
  if (seconds < 120) return seconds.toFixed(1) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return Math.round(seconds / 3600) + " h";
  return Math.round(seconds / 86400) + " d";
}

// Milliseconds since the epoch of a time as the server prints it, with the digits below a millisecond as a fraction.
export function milliseconds(text) {
  const at = Date.parse(text);
  if (Number.isNaN(at)) return null;
  const fraction = /\.(\d+)/.exec(text);
  return fraction ? at + Number("0." + fraction[1].slice(3).padEnd(1, "0")) : at;
}
