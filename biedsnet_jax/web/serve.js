"use strict";
// Sends one file, waits for its turn, and draws the result. The server sends each slice as deflated
// planes of bytes (see serving/worker.py). Probabilities p come as levels, so that
// "level > levels * t" means "p > t". The name of the file stays on this page.

const by = (id) => document.getElementById(id);
const MASK = [230, 159, 0], OF_FILE = [86, 180, 233];
const RAMP = [[0, 0, 0], [106, 27, 154], [230, 81, 0], [255, 241, 118]];
const SAMPLES = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167],
  [0, 114, 178],
];
const MAPS = {
  entropy: ["entropy", "1 bit"],
  mutual_information: ["disagreement of samples", "1 bit"],
  variance: ["variance of samples", "0.25"],
  within_models: ["disagreement within a model", "1 bit"],
  between_models: ["disagreement between models", "1 bit"],
};
const KINDS = [".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".zip"];
const CACHED = 48, AHEAD = 2; // slices
const state = {
  job: null, facts: null, stem: "", slice: 0, klass: 0, level: 0, opacity: 0.4, sample: -1, map: 0,
};

// ---- The upload and its turn

// A later upload ends the wait for an earlier one.
let turn = 0;

const kindOf = (name) => KINDS.find((kind) => name.toLowerCase().endsWith(kind)) ?? "";

// Shows a status and, where `share` is given, how much is done.
function report(text, share = null) {
  by("status").textContent = text;
  by("bar").hidden = share === null;
  by("bar").value = share ?? 0;
}

function refuse(text) {
  report("");
  by("refusal").textContent = text;
}

async function begin(files) {
  const own = ++turn;
  await remove();
  by("refusal").textContent = "";
  if (files.length !== 1) {
    return refuse("Give one file at a time. Zip the files of a DICOM series.");
  }
  const [file] = files, kind = kindOf(file.name), most = Number(by("drop").dataset.bytes);
  if (file.size > most) {
    return refuse(`${file.name} is larger than ${most / 2 ** 20} MiB. Cut it into parts.`);
  }
  state.stem = file.name.slice(0, file.name.length - kind.length);
  by("name").textContent = file.name;
  const progress = (share) => own === turn && report(`Sending ${file.name}`, share);
  const sent = await send(file, kind, progress);
  if (!sent.id) return own === turn && refuse(`${file.name}: ${sent.text}`);
  if (own !== turn) return forget(sent.id);
  state.job = sent.id;
  await wait(own, file.name);
}

function send(file, kind, progress) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", `jobs?like=${kind}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "text";
    request.upload.onprogress = (event) => progress(event.loaded / Math.max(1, event.total));
    request.onload = () => resolve(answer(request.responseText));
    request.onerror = () =>
      resolve({ text: "The server does not answer, or the file cannot be read. Try again." });
    progress(0);
    request.send(file);
  });
}

// Reads the JSON of the app, or a line of text from the guard or a proxy before it.
function answer(text) {
  try { return JSON.parse(text); } catch { return { text }; }
}

async function wait(own, name) {
  for (let pause = 100; own === turn; pause = Math.min(1000, pause * 1.3)) {
    let now;
    try {
      now = answer(await (await fetch(`jobs/${state.job}`)).text());
    } catch {
      now = { state: "failed", text: "The server no longer answers. Try again later." };
    }
    if (own !== turn) return;
    if (now.state === "waiting") {
      report(`${name} waits: ${now.before} before it`, 0);
    } else if (now.state === "running") {
      const share = now.done / Math.max(1, now.slices);
      report(`Segmenting ${name}: ${now.done} of ${now.slices || "?"} slices`, share);
    } else if (now.state === "done") {
      report("");
      return show(now.facts);
    } else {
      return refuse(`${name}: ${now.text}`);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

const forget = (job) => fetch(`jobs/${job}`, { method: "DELETE" }).catch(() => null);

async function remove() {
  const job = state.job;
  Object.assign(state, { job: null, facts: null });
  planes.clear();
  by("results").hidden = true;
  for (const id of ["image", "mask", "samples", "uncertainty"]) {
    Object.assign(by(id), { width: 1, height: 1 });
  }
  report("");
  if (job) await forget(job);
}

// ---- Slices

const planes = new Map();

function load(z) {
  if (!planes.has(z)) {
    planes.set(z, fetchPlanes(z).catch((error) => { planes.delete(z); throw error; }));
    if (planes.size > CACHED) planes.delete(planes.keys().next().value);
  }
  return planes.get(z);
}

async function fetchPlanes(z) {
  const { facts } = state, size = facts.height * facts.width;
  const packed = await fetch(`jobs/${state.job}/slices/${z}`);
  if (!packed.ok) throw new Error((await packed.json()).text);
  const stream = (await packed.blob()).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let next = 0;
  const plane = () => bytes.subarray(next * size, ++next * size);
  const take = (count) => Array.from({ length: count }, plane);
  const groups = (count) => Array.from({ length: count }, () => take(facts.classes));
  return {
    image: take(facts.colours),
    level: take(facts.classes),
    maps: groups(facts.maps.length),
    samples: groups(facts.samples),
    masks: take(facts.masks ? facts.classes : 0),
  };
}

const above = (levels, border) => levels.map((level) => (level > border ? 1 : 0));

// Marks the pixels of a mask beside one that is not in it.
function outline(mask, width, height) {
  return mask.map((inside, i) => {
    if (!inside) return 0;
    const x = i % width;
    return x > 0 && mask[i - 1] && x < width - 1 && mask[i + 1] && i >= width && mask[i - width] &&
      i < width * (height - 1) && mask[i + width] ? 0 : 1;
  });
}

function heat(byte) {
  const at = Math.min(0.9999, byte / 255) * (RAMP.length - 1), i = Math.floor(at), share = at - i;
  return RAMP[i].map((from, c) => from + (RAMP[i + 1][c] - from) * share);
}
const HEAT = Array.from({ length: 256 }, (_, byte) => heat(byte));

// Paints the image, then each layer over it: `tint` where its mask is set, or the heat of `tints`
// everywhere, blended by its strength.
function paint(canvas, image, layers) {
  const { width, height, aspect } = state.facts;
  const pixels = new ImageData(width, height), { data } = pixels;
  for (let i = 0, j = 0; j < data.length; i++, j += 4) {
    for (let c = 0; c < 3; c++) data[j + c] = image[c % image.length][i];
    data[j + 3] = 255;
  }
  for (const { mask, tint, tints, strength } of layers) {
    for (let i = 0, j = 0; j < data.length; i++, j += 4) {
      if (mask && !mask[i]) continue;
      const colour = tint ?? HEAT[tints[i]];
      for (let c = 0; c < 3; c++) data[j + c] += (colour[c] - data[j + c]) * strength;
    }
  }
  Object.assign(canvas, { width, height });
  canvas.style.aspectRatio = aspect;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

let drawing = 0;

async function draw() {
  const own = ++drawing;
  const { facts, slice: z, klass: k, level: border, opacity: strength } = state;
  if (!facts) return;
  let content;
  try {
    content = await load(z);
  } catch (error) {
    return facts === state.facts && refuse(`Slice ${z + 1}: ${error.message}`);
  }
  // Another drawing was asked for meanwhile.
  if (own !== drawing || facts !== state.facts) return;
  const line = (mask, tint) =>
    ({ mask: outline(mask, facts.width, facts.height), tint, strength: 1 });
  const filled = (mask, tint) => [{ mask, tint, strength }, line(mask, tint)];
  const count = (mask) => mask.reduce((sum, value) => sum + value, 0);
  const panel = (id, layers, text) => {
    paint(by(id), content.image, layers);
    by(id).setAttribute("aria-label", `${text}, slice ${z + 1}`);
  };
  const written = content.masks[k] ?? above(content.level[k], facts.level);
  const mask = border === facts.level ? written : above(content.level[k], border);
  const ofFile = border === facts.level ? [] : [line(written, OF_FILE)];
  panel("image", [], "image");
  panel("mask", [...ofFile, ...filled(mask, MASK)], `mask of ${count(mask)} pixels`);
  if (facts.samples) {
    const chosen = content.samples.map((sample) => above(sample[k], border));
    const colour = (n) => SAMPLES[n % SAMPLES.length], n = state.sample;
    if (n < 0) {
      const lines = chosen.map((sample, i) => line(sample, colour(i)));
      panel("samples", lines, `outlines of ${facts.samples} samples`);
    } else {
      panel("samples", filled(chosen[n], colour(n)), `sample ${n + 1}`);
    }
  }
  if (facts.maps.length) {
    const heat = { tints: content.maps[state.map][k], strength: Math.min(1, 2 * strength) };
    panel("uncertainty", [heat], "uncertainty");
  }
  describe(count(mask), count(written));
  for (let n = 1; n <= AHEAD; n++) {
    for (const near of [z + n, z - n]) {
      if (near >= 0 && near < facts.slices) load(near).catch(() => null);
    }
  }
}

const asThreshold = (level) => (level / state.facts.levels).toFixed(3);

// Writes the sentence below the controls, and their values.
function describe(pixels, written) {
  const { facts, slice, level } = state, place = `${slice + 1} of ${facts.slices}`;
  const own = level === facts.level;
  by("slice-text").textContent = place;
  by("slice").setAttribute("aria-valuetext", place);
  const shown = own ? `${facts.threshold}` : asThreshold(level);
  by("threshold-text").textContent = shown;
  by("threshold").setAttribute("aria-valuetext", shown);
  by("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
  by("of-file").hidden = own;
  const score = by("score");
  const model = facts.masks
    ? "in the model's mask, post-processed" : `above the model's threshold ${facts.threshold}`;
  score.textContent = own
    ? `Slice ${place}: ${pixels} pixels ${facts.masks ? model : `above ${shown}`}.`
    : `Slice ${place}: ${pixels} pixels above ${shown}, ${written} ${model}.`;
  const { klass, sample, map, opacity } = state;
  Object.assign(score.dataset, { slice, level, pixels, klass, sample, map, opacity });
}

// ---- Controls

const within = (value, most) => Math.max(0, Math.min(most, value));

function choose(change) {
  if (!state.facts) return;
  Object.assign(state, change);
  state.slice = within(state.slice, state.facts.slices - 1);
  state.level = within(state.level, state.facts.levels);
  by("slice").value = state.slice;
  by("threshold").value = state.level;
  draw();
}

// Fills a list with [value, text]; one with a single choice is hidden.
function options(id, names) {
  by(id).replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  by(id).parentElement.hidden = names.length < 2;
}

function show(facts) {
  const numbered = (count) => Array.from({ length: count }, (_, n) => [n, `${n + 1}`]);
  const middle = Math.floor((facts.slices - 1) / 2);
  Object.assign(state, { facts, slice: middle, klass: 0, level: facts.level, sample: -1, map: 0 });
  const samples = [[-1, "all, outlines"], ...numbered(facts.samples)];
  const named = numbered(facts.classes).map(([k, text]) => [k, [text, ...facts.class_names.slice(k, k + 1)].join(", ")]);
  options("class", named);
  options("sample", facts.samples > 1 ? samples : []);
  options("map", facts.maps.map((name, n) => [n, MAPS[name][0]]));
  by("slice").max = facts.slices - 1;
  by("slice").parentElement.hidden = facts.slices < 2;
  by("threshold").max = facts.levels;
  by("samples-panel").hidden = !facts.samples;
  by("uncertainty-panel").hidden = !facts.maps.length;
  unit();
  const extension = facts.mask.slice(facts.mask.indexOf("."));
  const format = extension === ".png" ? "PNG" : "NIfTI";
  link("save-mask", "mask", `${state.stem}_mask${extension}`, `Mask, ${format}`);
  link("save-summary", "summary", `${state.stem}_summary.csv`, "Summary, CSV");
  by("notes").replaceChildren(...facts.notes.map((text) => cell("li", text)));
  table(facts.rows);
  by("results").hidden = false;
  choose({});
  by("viewer").focus({ preventScroll: true });
}

const unit = () => {
  by("most").textContent = MAPS[state.facts.maps[state.map]]?.[1] ?? "";
};

function link(id, what, name, text) {
  Object.assign(by(id), { href: `jobs/${state.job}/${what}`, download: name, textContent: text });
}

const cell = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

function table(rows) {
  const shown = Object.keys(rows[0]).filter(
    (name) => name !== "name" && name !== "file" && rows[0][name] !== "",
  );
  const header = (name) => Object.assign(cell("th", name.replaceAll("_", " ")), { scope: "col" });
  by("columns").replaceChildren(...shown.map(header));
  by("rows").replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.append(...shown.map((name) => cell("td", row[name])));
    return line;
  }));
}

function start() {
  const drop = by("drop"), input = by("file");
  drop.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("change", () => {
    if (input.files.length) begin([...input.files]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    input.value = "";
    if (event.dataTransfer.files.length) begin([...event.dataTransfer.files]);
  });
  by("remove").onclick = async () => {
    turn++;
    input.value = "";
    await remove();
    report("Removed from the server.");
    input.focus();
  };
  const number = (id, name, scale = 1) =>
    by(id).addEventListener("input", (event) => {
      choose({ [name]: Number(event.target.value) * scale });
    });
  number("class", "klass");
  number("slice", "slice");
  number("threshold", "level");
  number("sample", "sample");
  number("map", "map");
  number("opacity", "opacity", 0.01);
  by("map").addEventListener("input", unit);
  by("reset").onclick = () => choose({ level: state.facts.level });
  keys(by("viewer"), {
    ArrowLeft: () => ({ slice: state.slice - 1 }), ArrowRight: () => ({ slice: state.slice + 1 }),
    PageUp: () => ({ slice: state.slice - 10 }), PageDown: () => ({ slice: state.slice + 10 }),
    Home: () => ({ slice: 0 }), End: () => ({ slice: state.facts.slices - 1 }),
    ArrowUp: () => ({ level: state.level + 1 }), ArrowDown: () => ({ level: state.level - 1 }),
  });
}

// Listens for keys in a section, except those that a control of it takes itself.
function keys(section, moves) {
  section.addEventListener("keydown", (event) => {
    const move = moves[event.key], modified = event.ctrlKey || event.altKey || event.metaKey;
    if (!move || modified || event.target.matches("input, select")) return;
    event.preventDefault();
    choose(move());
  });
}

theme(by("theme"));
start();
