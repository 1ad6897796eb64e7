"use strict";
// The report's pictures. Maps come as base64 of deflated bytes, class by class: probabilities p as ceil(200 p), so that
// "level > 200 t" is "p > t"; all that is drawn and counted here follows from them.

const data = JSON.parse(document.getElementById("pictures").textContent);
const by = (id) => document.getElementById(id);
const TRUTH = [86, 180, 233], PREDICTION = [230, 159, 0], WRONG = [213, 94, 0], UNKNOWN = [128, 128, 128];
const RAMP = [[0, 0, 0], [106, 27, 154], [230, 81, 0], [255, 241, 118]];
const state = { run: 0, slice: 0, klass: 0, level: 100, opacity: 0.4, map: "entropy", traced: 0, step: 0 };

// ---- Numbers

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function above(levels, border) {
  return Uint8Array.from(levels, (level) => level > border);
}

// What of a mask counts: nothing where the truth is not known. `known` is null where all is.
function counting(mask, known) {
  return known ? mask.map((inside, i) => inside & known[i]) : mask;
}

function count(mask, truth) {
  let tp = 0, fp = 0, fn = 0;
  for (let i = 0; i < mask.length; i++) {
    tp += mask[i] & truth[i];
    fp += mask[i] & ~truth[i];
    fn += truth[i] & ~mask[i];
  }
  return { tp, fp, fn, dice: tp + fn ? (2 * tp) / (2 * tp + fp + fn) : NaN };
}

function outline(mask, width, height) {
  return mask.map((inside, i) => {
    const x = i % width, y = (i - x) / width;
    const hidden = x > 0 && mask[i - 1] && x < width - 1 && mask[i + 1] && y > 0 && mask[i - width] &&
      y < height - 1 && mask[i + width];
    return inside && !hidden ? 1 : 0;
  });
}

function entropy(level) {
  const p = level / data.levels, term = (x) => (x > 0 ? -x * Math.log2(x) : 0);
  return term(p) + term(1 - p);
}

function heat(value) {
  const at = Math.min(0.9999, Math.max(0, value)) * (RAMP.length - 1), i = Math.floor(at), share = at - i;
  return RAMP[i].map((from, c) => from + (RAMP[i + 1][c] - from) * share);
}

const shown = (dice) => (dice === null || Number.isNaN(dice) ? "undefined, no truth" : dice.toFixed(4));
const said = (level) => (level / data.levels).toFixed(3);

// ---- Pictures

async function greys(slice) {
  const picture = new Image();
  picture.src = "data:image/jpeg;base64," + slice.image;
  await picture.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: slice.width, height: slice.height });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, slice.width, slice.height).data.filter((_, i) => i % 4 === 0);
}

async function unpack(slice) {
  const optional = (map) => (map ? inflate(map) : null);
  const [image, level, truth, known, mutual] = await Promise.all([
    greys(slice), inflate(slice.level), inflate(slice.truth), optional(slice.known), optional(slice.mutual),
  ]);
  return { image, level, truth, known, mutual };
}

const ready = new Map();
function load(slice) { // once each
  if (!ready.has(slice)) ready.set(slice, unpack(slice));
  return ready.get(slice);
}

function ofClass(maps, slice, klass) {
  const size = slice.width * slice.height;
  return maps && maps.subarray(klass * size, (klass + 1) * size);
}

// Paint `image`, with each layer's colour where its mask is set, blended by its strength.
function paint(canvas, width, height, image, layers) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    let colour = [image[i], image[i], image[i]];
    for (const { mask, tint, strength } of layers) {
      if (!mask[i]) continue;
      const own = typeof tint === "function" ? tint(i) : tint;
      colour = colour.map((value, c) => value + (own[c] - value) * strength);
    }
    pixels.data.set([...colour, 255], i * 4);
  }
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// ---- Slices

const run = () => data.runs[state.run];
const slice = () => run().slices[state.slice];
let drawing = 0;

async function draw() {
  const mine = ++drawing, one = slice(), maps = await load(one);
  if (mine !== drawing) return; // another was asked for meanwhile
  const { width, height } = one, size = width * height, every = new Uint8Array(size).fill(1);
  const level = ofClass(maps.level, one, state.klass), truth = ofClass(maps.truth, one, state.klass);
  const known = ofClass(maps.known, one, state.klass), unknown = known ? known.map((it) => 1 - it) : [];
  const mask = above(level, state.level), counted = counting(mask, known);
  const found = count(counted, truth), strength = state.opacity;
  const lines = { mask: outline(mask, width, height), truth: outline(truth, width, height) };
  const mutual = state.map === "mutual" && maps.mutual ? ofClass(maps.mutual, one, state.klass) : null;
  const unsure = (i) => heat(mutual ? mutual[i] / 255 : entropy(level[i]));
  const missed = truth.map((t, i) => t & ~mask[i]), wrong = counted.map((p, i) => p & ~truth[i]);
  const panel = (id, layers, text) => {
    paint(by(id), width, height, maps.image, layers);
    by(id).setAttribute("aria-label", `${text}, ${one.label}`);
  };
  panel("image", [], "image");
  panel("truth", [
    { mask: unknown, tint: UNKNOWN, strength: 0.7 },
    { mask: truth, tint: TRUTH, strength }, { mask: lines.truth, tint: TRUTH, strength: 1 },
  ], `truth, ${found.tp + found.fn} pixels`);
  panel("prediction", [{ mask, tint: PREDICTION, strength }, { mask: lines.mask, tint: PREDICTION, strength: 1 }],
    `prediction, ${found.tp + found.fp} pixels`);
  panel("uncertainty", [{ mask: every, tint: unsure, strength: Math.min(1, 2 * strength) }], "uncertainty");
  panel("difference", [
    { mask: missed, tint: TRUTH, strength }, { mask: wrong, tint: WRONG, strength },
    { mask: lines.truth, tint: TRUTH, strength: 1 }, { mask: lines.mask, tint: PREDICTION, strength: 1 },
  ], `difference, ${found.fn} pixels missed, ${found.fp} false`);
  tell(one, found);
}

function tell(one, found) {
  const group = one.group === "other" ? "" : `, one of the ${one.group === "median" ? "middle" : one.group}`;
  by("slice-text").textContent = `${state.slice + 1} of ${run().slices.length}`;
  by("slice").setAttribute("aria-valuetext", one.label);
  by("threshold-text").textContent = said(state.level);
  by("threshold").setAttribute("aria-valuetext", said(state.level));
  by("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
  const score = by("score");
  score.textContent = `${one.label}${group}: Dice ${shown(found.dice)} at threshold ${said(state.level)}; ` +
    `${found.tp} pixels right, ${found.fp} false, ${found.fn} missed. ` +
    `The evaluation had Dice ${shown(one.dice[state.klass])} at ` +
    `${run().processed ? "its end, post-processed" : run().threshold}.`;
  Object.assign(score.dataset, { dice: found.dice, level: state.level });
  [...by("strip").querySelectorAll("button")].forEach((button, i) => {
    button.setAttribute("aria-pressed", i === state.slice);
  });
}

async function fillStrip() {
  const of = run();
  by("strip").replaceChildren(...of.slices.map((one, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: `Dice, ${one.label}` });
    const canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    const dice = one.mean === null ? "no truth" : one.mean.toFixed(3);
    button.append(canvas, one.group === "other" ? dice : `${one.group} ${dice}`);
    button.onclick = () => choose({ slice: i });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  const canvases = by("strip").querySelectorAll("canvas");
  for (const [i, one] of of.slices.entries()) await paintOutlines(canvases[i], one, of.level);
}

// The image with the outlines of every class, at the run's own threshold.
async function paintOutlines(canvas, one, border) {
  const maps = await load(one), { width, height } = one;
  const layers = one.dice.flatMap((_, k) => [
    { mask: outline(ofClass(maps.truth, one, k), width, height), tint: TRUTH, strength: 1 },
    { mask: outline(above(ofClass(maps.level, one, k), border), width, height), tint: PREDICTION, strength: 1 },
  ]);
  paint(canvas, width, height, maps.image, layers);
}

// The worst, the median and the best slice of the run, large; slices come in the order of their Dice.
function fillExtremes() {
  const of = run(), places = (group) => [...of.slices.keys()].filter((i) => of.slices[i].group === group);
  const middle = places("median"), chosen = [
    ["Worst", places("worst")[0]], ["Median", middle[middle.length >> 1]], ["Best", places("best").at(-1)],
  ].filter(([, place]) => place !== undefined);
  by("extremes").replaceChildren(...chosen.map(([name, place]) => {
    const one = of.slices[place], figure = document.createElement("figure");
    const canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.setAttribute("aria-label", `Show the ${name.toLowerCase()} slice below`);
    button.onclick = () => choose({ slice: place });
    button.append(canvas);
    caption.append(`${name}: Dice ${one.mean.toFixed(3)}. ${one.label}. `, ...["truth", "prediction"].map((mask) => {
      const legend = document.createElement("span");
      legend.append(Object.assign(document.createElement("i"), { className: `swatch ${mask}` }), mask);
      return legend;
    }));
    figure.append(button, caption);
    paintOutlines(canvas, one, of.level);
    return figure;
  }));
}

// ---- Denoising

const tracedSlices = () => run().slices.filter((one) => one.steps);

async function drawSteps() {
  const one = tracedSlices()[state.traced];
  by("steps").hidden = !one;
  by("no-steps").hidden = Boolean(one);
  if (!one) return;
  if (!one.trace) one.trace = Promise.all([inflate(one.steps.x_t), inflate(one.steps.x_0), load(one)]);
  const asked = [state.run, state.traced, state.step].join();
  const [x_t, x_0, maps] = await one.trace;
  if (asked !== [state.run, state.traced, state.step].join()) return;
  const times = run().times, frame = (map, size) => {
    const first = (state.klass * times.length + state.step) * size;
    return map.subarray(first, first + size);
  };
  const { width, height } = one, small = one.steps;
  const noisy = frame(x_t, small.width * small.height), level = frame(x_0, width * height);
  const mask = above(level, state.level), truth = ofClass(maps.truth, one, state.klass);
  const known = ofClass(maps.known, one, state.klass);
  paint(by("x_t"), small.width, small.height, noisy.map((v) => (255 * v) / data.greys), []);
  paint(by("x_0"), width, height, level.map((v) => Math.min(255, (255 * v) / data.levels)), []);
  paint(by("outlines"), width, height, maps.image, [
    { mask: outline(truth, width, height), tint: TRUTH, strength: 1 },
    { mask: outline(mask, width, height), tint: PREDICTION, strength: 1 },
  ]);
  const found = count(counting(mask, known), truth), place = `${state.step + 1} of ${times.length}`;
  const name = times.length > 1 ? `Step ${place}` : "The only step";
  by("step-text").textContent = place;
  by("step").setAttribute("aria-valuetext", `${place}, t ${times[state.step]}`);
  by("step-score").textContent = `${name}, t = ${times[state.step]}: Dice of its answer ${shown(found.dice)}, ` +
    `${found.tp + found.fp} pixels.`;
  by("step-score").dataset.dice = found.dice;
}

let playing = null;
function play() {
  if (playing) return stop();
  by("play").textContent = "Stop";
  choose({ step: 0 });
  playing = setInterval(() => {
    if (state.step + 1 >= run().times.length) stop();
    else choose({ step: state.step + 1 });
  }, 500);
}

function stop() {
  clearInterval(playing);
  playing = null;
  by("play").textContent = "Play";
}

// ---- Controls

const within = (value, most) => Math.max(0, Math.min(most, value));

// Change the state, then what is shown.
function choose(change) {
  Object.assign(state, change);
  if ("run" in change) openRun();
  state.slice = within(state.slice, run().slices.length - 1);
  state.level = within(state.level, data.levels);
  state.step = within(state.step, run().times.length - 1);
  for (const [id, value] of [["slice", state.slice], ["threshold", state.level], ["step", state.step]]) by(id).value = value;
  draw();
  drawSteps();
}

function options(select, names) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  select.parentElement.hidden = names.length < 2;
}

function openRun() {
  stop();
  const of = run(), mutual = of.slices.some((one) => one.mutual);
  Object.assign(state, { level: of.level, klass: 0, traced: 0, step: of.times.length - 1 });
  state.slice = within(state.slice, of.slices.length - 1);
  if (!mutual) state.map = by("map").value = "entropy";
  by("map").parentElement.hidden = !mutual;
  by("slice").max = of.slices.length - 1;
  by("threshold").max = data.levels;
  by("step").max = Math.max(0, of.times.length - 1);
  // A slider over one place says nothing.
  by("slice").parentElement.hidden = of.slices.length < 2;
  by("step").parentElement.hidden = by("play").hidden = of.times.length < 2;
  options(by("class"), of.classes);
  options(by("traced"), tracedSlices().map((one) => `${one.label} (${one.group})`));
  fillStrip();
  fillExtremes();
}

// Arrow keys in a section, but for those that its controls take themselves.
function keys(section, moves) {
  section.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.target.matches("input, select") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(move());
  });
}

function start() {
  options(by("which"), data.runs.map((one) => one.name));
  const number = (id, name, scale = 1) =>
    by(id).addEventListener("input", (event) => choose({ [name]: Number(event.target.value) * scale }));
  for (const [id, name] of [["which", "run"], ["class", "klass"], ["slice", "slice"], ["threshold", "level"],
    ["traced", "traced"], ["step", "step"]]) number(id, name);
  number("opacity", "opacity", 0.01);
  by("map").addEventListener("input", (event) => choose({ map: event.target.value }));
  by("reset").onclick = () => choose({ level: run().level });
  by("play").onclick = play;
  keys(by("viewer"), {
    ArrowLeft: () => ({ slice: state.slice - 1 }), ArrowRight: () => ({ slice: state.slice + 1 }),
    ArrowUp: () => ({ level: state.level + 1 }), ArrowDown: () => ({ level: state.level - 1 }),
  });
  keys(by("steps"), { ArrowLeft: () => ({ step: state.step - 1 }), ArrowRight: () => ({ step: state.step + 1 }) });
  choose({ run: 0 });
}

const tables = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth);
});
document.querySelectorAll(".wide").forEach((table) => tables.observe(table));

theme(by("theme"));
if (data.runs.length) start();
