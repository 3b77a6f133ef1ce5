"use strict";
// The same pairs several times: one below the other (runs), or one after another (steps of training)
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slider = byId("step");
const state = { pair: 0, layer: data.layers[0].name, spaces: false, frame: data.frames.length - 1 };
const layerOf = (name) => data.layers.find((layer) => layer.name === name);
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));

const unpack = (pair, frame, side) => {
  const own = data.pairs[pair].frames[frame][side];
  const values = {};
  for (const [name, text] of Object.entries(own.values)) values[name] = floats(text);
  const texts = own.pieces ? own : data.pairs[pair].frames.find((other) => other && other[side].pieces)[side];
  return { ids: integers(texts.ids), pieces: texts.pieces, special: texts.special, reward: own.reward, values: derive(values) };
};

const describe = (side, frame, index, own) => {
  byId("details").replaceChildren(...facts(own, index, `${side}, ${data.frames[frame]}`, data.layers));
  byId("details").dataset.token = `${frame}/${side}/${index}`;
};

const response = (frame, side) => {
  const own = unpack(state.pair, frame, side);
  const layer = layerOf(state.layer);
  const tokens = own.pieces.map((piece, index) => {
    const token = element("span", { className: "token", tabIndex: -1, textContent: shown(piece, state.spaces) });
    if (own.special[index]) token.classList.add("special");
    paint(token, own.values[layer.name] && own.values[layer.name][index], layer.limit);
    token.addEventListener("mouseenter", () => describe(side, frame, index, own));
    token.addEventListener("focus", () => describe(side, frame, index, own));
    token.addEventListener("click", () => token.focus());
    return token;
  });
  const box = element("div", { className: "tokens" }, ...(tokens.length ? tokens : [element("span", { className: "soft", textContent: "(empty)" })]));
  box.dataset.side = side;
  box.dataset.frame = frame;
  const values = own.values[layer.name];
  const zeros = values && values.length ? ` · ${((100 * values.filter((v) => v === 0).length) / values.length).toFixed(0)} % exactly zero` : "";
  return element("section", {}, element("h3", { textContent: `${side === "chosen" ? "Chosen" : "Rejected"} · reward ${number(own.reward)}${zeros}` }), box);
};

const frameBox = (frame) => {
  const own = data.pairs[state.pair].frames[frame];
  const head = element("h2", { textContent: own ? `${data.frames[frame]} · margin ${number(own.margin)}` : `${data.frames[frame]} · not in this run` });
  if (!own) return element("div", { className: "frame" }, head);
  return element("div", { className: "frame" }, head, element("div", { className: "sides" }, response(frame, "chosen"), response(frame, "rejected")));
};

const legend = () => byId("legend").replaceChildren(...scale(layerOf(state.layer)));

const draw = () => {
  legend();
  byId("prompt-text").textContent = shown(data.pairs[state.pair].prompt, state.spaces);
  const frames = slider ? [state.frame] : data.frames.map((_, i) => i);
  byId("frames").replaceChildren(...frames.map(frameBox));
  if (slider) { slider.value = state.frame; byId("step-name").textContent = data.frames[state.frame]; }
};

const setPair = (pair) => {
  state.pair = Math.max(0, Math.min(data.pairs.length - 1, pair));
  byId("pair").value = state.pair;
  byId("details").replaceChildren(element("span", { className: "soft", textContent: "Point at a token to see its numbers." }));
  draw();
};
const setLayer = (name) => { state.layer = name; byId("layer").value = name; draw(); };
const setFrame = (frame) => { state.frame = Math.max(0, Math.min(data.frames.length - 1, frame)); draw(); };
const toggleSpaces = () => { state.spaces = !state.spaces; byId("spaces").setAttribute("aria-pressed", String(state.spaces)); draw(); };

data.pairs.forEach((pair, i) => byId("pair").append(element("option", { value: i, textContent: `#${pair.number}${pair.group ? ` ${pair.group}` : ""} ${named(pair.prompt.slice(-60)).replace(/\s+/g, " ")}` })));
for (const layer of data.layers) byId("layer").append(element("option", { value: layer.name, textContent: layer.label }));
byId("pair").addEventListener("change", (event) => setPair(Number(event.target.value)));
byId("layer").addEventListener("change", (event) => setLayer(event.target.value));
byId("spaces").addEventListener("click", toggleSpaces);
themeButton(byId("theme"));
if (slider) {
  slider.max = data.frames.length - 1;
  slider.addEventListener("input", () => setFrame(Number(slider.value)));
  let timer = null;
  byId("play").addEventListener("click", () => {
    if (timer) { clearInterval(timer); timer = null; byId("play").textContent = "Play"; return; }
    byId("play").textContent = "Stop";
    timer = setInterval(() => setFrame((state.frame + 1) % data.frames.length), 600);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const layers = data.layers.map((layer) => layer.name);
  const actions = {
    j: () => setPair(state.pair + 1), k: () => setPair(state.pair - 1), w: toggleSpaces,
    l: () => setLayer(layers[(layers.indexOf(state.layer) + 1) % layers.length]),
    L: () => setLayer(layers[(layers.indexOf(state.layer) + layers.length - 1) % layers.length]),
  };
  if (slider) Object.assign(actions, { ArrowLeft: () => setFrame(state.frame - 1), ArrowRight: () => setFrame(state.frame + 1) });
  if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
});
setPair(0);
document.documentElement.dataset.ready = "true";
