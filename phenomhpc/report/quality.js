"use strict";
// Filters and sorts the plates, and shows the values under the pointer.  What is drawn is in the page without this.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const figures = JSON.parse(byId("figures").textContent);
const find = byId("find"), only = byId("only"), tip = byId("tip");

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (element) =>
    words.every((word) => element.dataset.plate.toLowerCase().includes(word)) && !(only.checked && element.dataset.flagged === "0");
  for (const element of all("[data-plate]")) element.hidden = !fits(element);
  const rows = all("#all tbody tr"), left = rows.filter((row) => !row.hidden).length;
  byId("count").textContent = left === rows.length ? `${left} plate${left === 1 ? "" : "s"}` : `${left} of ${rows.length} plates`;
}

function sortBy(head) {
  const place = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
  const body = byId("all").tBodies[0];
  const key = (row) => (place ? Number(row.cells[place].dataset.order) : row.dataset.plate);
  const rows = [...body.rows].sort((one, other) => (key(one) < key(other) ? -1 : key(one) > key(other) ? 1 : 0));
  if (down) rows.reverse();
  body.append(...rows);
  for (const other of all("#all th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

function openTarget() {
  const target = location.hash.length > 1 && byId(decodeURIComponent(location.hash.slice(1)));
  if (target && target.matches("details")) target.open = true;
}

const shown = (value, measure) =>
  value === null || value === undefined ? "–" : measure.percent ? `${Number((value * 100).toPrecision(3))} %` : String(value);

function rowName(row) {
  let letters = "";
  for (let number = row + 1; number; number = Math.floor((number - 1) / 26)) letters = String.fromCharCode(65 + ((number - 1) % 26)) + letters;
  return letters;
}

const parsed = new WeakMap();
function figuresOf(plate) {
  if (!parsed.has(plate)) parsed.set(plate, JSON.parse(plate.querySelector(".figures").textContent));
  return parsed.get(plate);
}

function wordsOfWell(svg, event) {
  const of = figuresOf(svg.closest("details"));
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const x = Math.floor(point.x), y = Math.floor(point.y);
  if (x < 0 || y < 0 || x >= of.columns || y >= of.rows) return "";
  const at = y * of.columns + x, usable = of.usable[at], aside = of.aside[at];
  const well = rowName(y) + String(x + 1).padStart(2, "0");
  if (!usable && !aside) return `${well}  no images`;
  const fields = `${usable} of ${usable + aside} field${usable + aside === 1 ? "" : "s"} usable`;
  if (svg.dataset.measure === undefined) {
    const rows = {};
    figures.measures.forEach((measure, place) => {
      if (place in of.values) (rows[measure.row] ??= []).push(`${measure.column} ${shown(of.values[place][at], measure)}`);
    });
    return [`${well}  ${fields}`, ...Object.entries(rows).map(([name, parts]) => `${name}: ${parts.join("  ")}`)].join("\n");
  }
  const measure = figures.measures[svg.dataset.measure];
  return `${well}  ${measure.column} ${measure.row} ${shown(of.values[svg.dataset.measure][at], measure)}\n${fields}`;
}

function wordsOfPlate(svg, event) {
  const box = svg.getBoundingClientRect(), place = Math.floor(((event.clientX - box.left) / box.width) * figures.plates.length);
  const name = figures.plates[place], measure = figures.measures[svg.dataset.drift];
  if (name === undefined) return "";
  const [low, middle, high] = figures.drift[svg.dataset.drift][place].map((value) => shown(value, measure));
  return `${name}\nmedian ${middle}, half of the wells ${low} to ${high}`;
}

function hover(event) {
  const svg = event.target.closest?.("svg.over");
  const words = !svg ? "" : svg.dataset.drift === undefined ? wordsOfWell(svg, event) : wordsOfPlate(svg, event);
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
}

for (const head of all("#all thead th")) head.querySelector("button").addEventListener("click", () => sortBy(head));
find.addEventListener("input", filter);
only.addEventListener("change", filter);
byId("open").addEventListener("click", () => all("details.plate:not([hidden])").forEach((plate) => (plate.open = true)));
byId("close").addEventListener("click", () => all("details.plate").forEach((plate) => (plate.open = false)));
addEventListener("hashchange", openTarget);
addEventListener("pointermove", hover);
addEventListener("pointerdown", hover);
addEventListener("scroll", () => (tip.hidden = true), { passive: true });
openTarget();
filter();
