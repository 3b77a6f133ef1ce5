"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const state = { layer: data.layers[0].name, pair: 0, spaces: false, order: data.pairs.map((_, i) => i) };
const layerOf = (name) => data.layers.find((layer) => layer.name === name);
const number = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));

const unpacked = new Map();
const unpack = (pair, side) => {
  const key = `${pair}/${side}`;
  if (!unpacked.has(key)) {
    const own = data.pairs[pair][side];
    const values = {};
    for (const [name, text] of Object.entries(own.values)) values[name] = floats(text);
    if (unpacked.size > 40) unpacked.clear();
    unpacked.set(key, { ids: integers(own.ids), pieces: own.pieces, special: own.special, values: derive(values) });
  }
  return unpacked.get(key);
};

const KEYS = {
  number: (pair) => pair.number,
  margin: (pair) => pair.margin,
  loss: (pair) => -pair.loss,
  zeros: (pair) => -(pair.zeros ?? -1),
  length: (pair) => -pair.length,
};

const refreshList = () => {
  const words = byId("search").value.toLowerCase();
  const kind = byId("filter").value;
  const group = byId("group") ? byId("group").value : "";
  const key = KEYS[byId("sort").value];
  state.order = data.pairs
    .map((_, i) => i)
    .filter((i) => {
      const pair = data.pairs[i];
      if (kind === "right" && !(pair.margin > 0)) return false;
      if (kind === "wrong" && pair.margin > 0) return false;
      if (group && pair.group !== group) return false;
      if (!words) return true;
      return [pair.prompt, pair.chosen.pieces.join(""), pair.rejected.pieces.join("")].some((t) => t.toLowerCase().includes(words));
    })
    .sort((a, b) => key(data.pairs[a]) - key(data.pairs[b]) || a - b);
  byId("count").textContent = `${state.order.length} of ${data.pairs.length} pairs`;
  byId("list").replaceChildren(
    ...state.order.map((i) => {
      const pair = data.pairs[i];
      const first = element("div", { className: "first" },
        element("span", { textContent: `#${pair.number}${pair.group ? ` ${pair.group}` : ""}` }),
        element("span", { className: pair.margin > 0 ? "" : "wrong", textContent: `margin ${number(pair.margin, 2)}` }));
      const line = element("li", { role: "option" }, first,
        element("div", { className: "start", textContent: named(pair.prompt.slice(-160).trim()).replace(/\s+/g, " ") || "(no prompt)" }));
      line.dataset.pair = i;
      line.addEventListener("click", () => show(i));
      return line;
    }));
  markSelected();
};

const markSelected = () => {
  for (const line of byId("list").children) {
    const is = Number(line.dataset.pair) === state.pair;
    line.setAttribute("aria-selected", String(is));
    if (is) line.scrollIntoView({ block: "nearest" });
  }
};

const describe = (side, index, own) => {
  byId("details").replaceChildren(...facts(own, index, side, data.layers));
  byId("details").dataset.token = `${side}/${index}`;
};

const curve = (own) => {
  const ns = "http://www.w3.org/2000/svg";
  const values = own.values.running;
  if (!values || values.length < 2) return "";
  const low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1;
  const y = (v) => 50 - (48 * (v - low)) / span;
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 100 52");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `reward up to each token, from ${number(low)} to ${number(high)}`);
  const axis = document.createElementNS(ns, "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 100, y1: y(0), y2: y(0) })) axis.setAttribute(name, value);
  axis.setAttribute("class", "axis");
  const line = document.createElementNS(ns, "polyline");
  line.setAttribute("points", Array.from(values, (v, i) => `${(100 * i) / (values.length - 1)},${y(v)}`).join(" "));
  line.setAttribute("class", "curve");
  svg.append(axis, line);
  return svg;
};

const response = (side) => {
  const own = unpack(state.pair, side);
  const layer = layerOf(state.layer);
  const tokens = own.pieces.map((piece, index) => {
    const token = element("span", { className: "token", tabIndex: -1, textContent: shown(piece, state.spaces) });
    if (own.special[index]) token.classList.add("special");
    paint(token, own.values[layer.name] && own.values[layer.name][index], layer.limit);
    token.addEventListener("mouseenter", () => describe(side, index, own));
    token.addEventListener("focus", () => describe(side, index, own));
    token.addEventListener("click", () => token.focus());
    return token;
  });
  if (tokens.length) tokens[0].tabIndex = 0;
  const pair = data.pairs[state.pair];
  const box = element("div", { className: "tokens" }, ...(tokens.length ? tokens : [element("span", { className: "soft", textContent: "(empty)" })]));
  box.dataset.side = side;
  return element("section", {},
    element("h2", { textContent: `${side === "chosen" ? "Chosen" : "Rejected"} · reward ${number(pair[side].reward)} · ${tokens.length} tokens` }), box, curve(own));
};

const legend = () => byId("legend").replaceChildren(...scale(layerOf(state.layer)));

const show = (pair) => {
  state.pair = pair;
  const own = data.pairs[pair];
  if (!own) { byId("responses").replaceChildren(); return; }
  byId("facts").replaceChildren(
    ...[["pair", `#${own.number}`], ["margin", number(own.margin)], ["loss", number(own.loss)], ["zeros", own.zeros === null ? "–" : `${(100 * own.zeros).toFixed(1)} %`], ["β", String(own.beta)]].map(
      ([name, text]) => element("span", {}, element("span", { className: "soft", textContent: `${name} ` }), text)));
  byId("prompt-text").textContent = shown(own.prompt, state.spaces);
  legend();
  byId("responses").replaceChildren(response("chosen"), response("rejected"));
  byId("details").replaceChildren(element("span", { className: "soft", textContent: "Point at a token, or press Tab and the arrow keys, to see its numbers." }));
  markSelected();
};

const move = (by) => {
  const at = state.order.indexOf(state.pair);
  const next = state.order[Math.max(0, Math.min(state.order.length - 1, at + by))];
  if (next !== undefined) show(next);
};
const setLayer = (name) => { state.layer = name; byId("layer").value = name; show(state.pair); };
const toggleSpaces = () => {
  state.spaces = !state.spaces;
  byId("spaces").setAttribute("aria-pressed", String(state.spaces));
  show(state.pair);
};

for (const layer of data.layers) byId("layer").append(element("option", { value: layer.name, textContent: layer.label }));
byId("layer").addEventListener("change", (event) => setLayer(event.target.value));
byId("spaces").addEventListener("click", toggleSpaces);
themeButton(byId("theme"));
for (const id of ["search", "filter", "sort", "group"]) if (byId(id)) byId(id).addEventListener("input", refreshList);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.target.classList.contains("token") && /^Arrow(Left|Right)$/.test(event.key)) {
    const next = event.key === "ArrowRight" ? event.target.nextElementSibling : event.target.previousElementSibling;
    if (next) { event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    event.preventDefault();
    return;
  }
  const layers = data.layers.map((layer) => layer.name);
  const actions = {
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    l: () => setLayer(layers[(layers.indexOf(state.layer) + 1) % layers.length]),
    L: () => setLayer(layers[(layers.indexOf(state.layer) + layers.length - 1) % layers.length]),
    w: toggleSpaces, "/": () => byId("search").focus(),
    p: () => { byId("prompt").open = !byId("prompt").open; },
  };
  if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
});
refreshList();
show(state.order[0] ?? 0);
document.documentElement.dataset.ready = "true";
