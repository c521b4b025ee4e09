// Adds to a page that reads without it: hover and keyboard values, the theme switch, showing and hiding runs.
// All text goes in through textContent, never as markup.
"use strict";

let figures = JSON.parse(document.getElementById("figures").textContent);
const hidden = new Set();

function written(value, unit) {
  if (unit === "fraction") return `${(100 * value).toFixed(1)}%`;
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  for (const [step, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= step) return `${Number((value / (step === 1e4 ? 1e3 : step)).toPrecision(3))}${prefix}`;
  }
  return String(Number(value.toPrecision(4)));
}

function make(name, className, parent, text) {
  const node = document.createElement(name);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function nearest(sorted, x) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle;
    else high = middle;
  }
  return x - sorted[low] <= sorted[high] - x ? low : high;
}

function height(figure, y) {
  const [low, high] = figure.y;
  const part = figure.log ? Math.log(Math.max(y, low) / low) / Math.log(high / low) : (y - low) / (high - low);
  return 100 * (1 - Math.min(1, Math.max(0, part)));
}

function attach(plot) {
  const figure = figures[plot.dataset.chart];
  if (!figure) return;
  const [start, end] = figure.x;
  const steps = [...new Set(figure.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  let drawn = [];
  let current = steps.length - 1;

  function clear() {
    drawn.forEach((node) => node.remove());
    drawn = [];
  }

  function show(index) {
    clear();
    current = Math.min(steps.length - 1, Math.max(0, index));
    const x = steps[current];
    const left = 100 * (x - start) / (end - start);
    const cursor = make("div", "cursor", plot);
    cursor.style.left = `${left}%`;
    const tip = make("div", "tip", plot);
    tip.setAttribute("role", "status");
    make("b", "", tip, `${figure.name} ${x}`);
    drawn.push(cursor, tip);
    for (const line of figure.lines) {
      if (hidden.has(line.run) || line.x.length === 0) continue;
      const at = nearest(line.x, x);
      const own = line.x[at];
      // A line that has not begun, or has ended, says so by saying nothing; a sparse one gives its nearest value.
      if (x < line.x[0] || x > line.x[line.x.length - 1]) continue;
      const band = line.band && line.band[at];
      const range = band ? ` (${written(band[0], figure.unit)} to ${written(band[1], figure.unit)})` : "";
      const when = own === x ? "" : ` at ${own}`;
      const row = make("span", "", tip);
      make("i", `key ${line.css}`, row);
      row.append(`${line.label}: ${written(line.y[at], figure.unit)}${range}${when}`);
      const spot = make("div", `spot ${line.css}`, plot);
      spot.style.left = `${100 * (own - start) / (end - start)}%`;
      spot.style.top = `${height(figure, line.y[at])}%`;
      drawn.push(spot);
    }
    const room = plot.clientWidth - tip.offsetWidth;
    const wanted = (left / 100) * plot.clientWidth;
    tip.style.left = `${Math.max(0, wanted > plot.clientWidth / 2 ? wanted - tip.offsetWidth - 12 : Math.min(room, wanted + 12))}px`;
  }

  function point(event) {
    const box = plot.getBoundingClientRect();
    const x = start + (end - start) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    show(nearest(steps, x));
  }

  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("blur", clear);
  plot.addEventListener("keydown", (event) => {
    const jump = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") clear();
    if (jump === undefined) return;
    event.preventDefault();
    show(drawn.length || !Number.isFinite(jump) ? current + jump : current); // the first arrow shows where one stands
  });
}

function remember(theme) {
  try {
    if (theme) localStorage.setItem("heliostat-theme", theme);
    return localStorage.getItem("heliostat-theme");
  } catch {
    return null; // storage is refused for some local files; the switch still works until the page is closed
  }
}

function switchTheme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { button.textContent = isDark() ? "☀ Light" : "☾ Dark"; };
  const saved = remember();
  if (saved === "light" || saved === "dark") root.dataset.theme = saved;
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    label();
  });
}

function switchRuns() {
  for (const button of document.querySelectorAll("button[data-run]")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      const show = hidden.delete(run);
      if (!show) hidden.add(run);
      button.setAttribute("aria-pressed", String(show));
      document.querySelectorAll(`.data .run${run}`).forEach((path) => { path.style.display = show ? "" : "none"; });
    });
  }
}

document.querySelectorAll(".plot").forEach(attach);
switchTheme();
switchRuns();
