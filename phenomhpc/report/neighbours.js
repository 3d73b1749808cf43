"use strict";
// Looks up the neighbours of a name among those that the page carries.  Nothing is asked of anybody.
const byId = (id) => document.getElementById(id);
const map = JSON.parse(byId("neighbours").textContent);
const exact = new Map(map.labels.map((label, at) => [label, at]));
const place = new Map(map.labels.map((label, at) => [label.toLowerCase(), at]));
const ask = byId("ask"), offers = byId("offers"), said = byId("said"), sides = [byId("near"), byId("far")];
const MOST_OFFERED = 8;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function link(label, className) {
  const button = make("button", className, label);
  button.type = "button";
  button.addEventListener("click", () => choose(label));
  return button;
}

function rowOf(side, of, at, rank) {
  const row = make("li"), cosine = side.cosine[of][rank] / 1000;
  const bar = make("i", cosine < 0 ? "bar minus" : "bar");
  bar.style.width = `${Math.abs(cosine) * 100}%`;
  const track = make("span", "track");
  track.append(bar);
  row.append(link(map.labels[at], "name"), track, make("span", "cosine", cosine.toFixed(3).replace("-", "\u2212")));
  const bits = side.known[of] ? side.known[of][rank] : 0;
  const known = make("span", "known");
  map.annotations.forEach((name, bit) => { if (Math.floor(bits / 2 ** bit) % 2) known.append(make("b", "", name)); });
  row.append(known);
  return row;
}

function show(of) {
  said.textContent = map.labels[of];
  map.sides.forEach((side, number) => sides[number].replaceChildren(...side.at[of].map((at, rank) => rowOf(side, of, at, rank))));
}

function choose(label) {
  ask.value = label;
  offers.replaceChildren();
  byId("missing").textContent = "";
  show(exact.get(label));
}

function offered(words) {
  const begins = [], holds = [];
  for (const label of map.labels) {
    const found = label.toLowerCase().indexOf(words);
    if (found === 0) begins.push(label);
    else if (found > 0) holds.push(label);
    if (begins.length > MOST_OFFERED) break;
  }
  return [...begins, ...holds].slice(0, MOST_OFFERED);
}

function look() {
  const words = ask.value.trim().toLowerCase();
  byId("missing").textContent = "";
  if (!words) return offers.replaceChildren();
  const at = exact.get(ask.value.trim()) ?? place.get(words);
  if (at !== undefined) {
    offers.replaceChildren();
    return show(at);
  }
  const names = offered(words);
  offers.replaceChildren(...names.map((name) => link(name, "offer")));
  if (!names.length) byId("missing").textContent = `no ${map.noun} of this map is called ${ask.value.trim()}`;
}

ask.addEventListener("input", look);
ask.addEventListener("keydown", (event) => {
  const first = event.key === "Enter" && offers.querySelector("button");
  if (first) first.click();
});
choose(map.first);
