"use strict";
// Shared by all pages: numbers from base64, visible text, coloured tokens. Text enters the page as text only.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const integers = (text) => new Int32Array(bytes(text).buffer);
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
// Controls that would be invisible, or would reorder what stands beside them
const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const named = (text) =>
  text.replace(CONTROL, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
const SPACES = { " ": "·", "\u00a0": "⍽", "\t": "→\t", "\r": "␍", "\n": "⏎\n" };
const shown = (text, withSpaces) =>
  withSpaces ? named(text).replace(/[ \u00a0\t\r\n]/g, (c) => SPACES[c]) : named(text).replace(/\r/g, "␍");
const exact = (value) => {
  // the shortest decimal that is this float32
  if (!Number.isFinite(value)) return String(value);
  for (let digits = 1; digits < 10; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(value);
};
const paint = (token, value, limit) => {
  token.classList.remove("zero", "value", "plus", "minus");
  if (value === undefined || value === null || Number.isNaN(value)) return;
  if (value === 0) { token.classList.add("zero"); return; }
  token.classList.add("value", value > 0 ? "plus" : "minus");
  const size = limit > 0 ? Math.min(Math.abs(value) / limit, 1) : 1;
  token.style.setProperty("--size", (0.1 + 0.9 * size).toFixed(4));
};
// Quantities that follow from the stored ones, in the arithmetic of the table: float32 products, float64 sums
const derive = (values) => {
  const times = (a, b) => (a && b ? a.map((x, i) => Math.fround(x * b[i])) : b);
  if (values.log_ratio) values.reward_part = times(values.reward_mask, values.log_ratio);
  if (values.kl_mask && values.kl) values.kl_part = times(values.kl_mask, values.kl);
  if (values.contribution) {
    let sum = 0;
    values.running = values.contribution.map((x) => (sum += x));
  }
  return values;
};
// What the bar at the foot says of a token: its text, id and place, and every quantity
const facts = (own, index, where, layers) => {
  const rows = [["token", `${own.ids[index]} (no. ${index + 1}, ${where})`]];
  for (const layer of layers) {
    const values = own.values[layer.name];
    if (values) rows.push([layer.label, exact(values[index])]);
  }
  return [
    element("span", { className: "piece", textContent: shown(own.pieces[index], true) || "(part of the next token)" }),
    ...rows.map(([name, text]) => element("span", {}, element("dt", { textContent: `${name} ` }), element("dd", { textContent: text })))];
};
const scale = (layer) => {
  const sizes = layer.signed ? [-1, -0.5, 0.02, 0.5, 1] : [0.02, 0.25, 0.5, 0.75, 1];
  const ramp = sizes.map((size) => { const s = element("span", { className: "token" }); paint(s, size, 1); return s; });
  const end = Number(layer.limit.toPrecision(3));
  return [
    element("span", { textContent: layer.label }),
    element("span", { textContent: layer.signed ? `≤ −${end}` : "just above 0" }), element("span", { className: "ramp" }, ...ramp),
    element("span", { textContent: `≥ ${end}` }), element("span", { className: "token zero", textContent: "exactly zero" })];
};
const themeButton = (button) => {
  const dark = () =>
    (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const say = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; say(); });
  say();
};
