// The model, off the main thread: a bitmap in, the answer out. The page stays responsive while it works and learns.
import * as ort from "onnxruntime-web/wasm";
import threadsUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { describe, Learner, metadataOf } from "./learn/learner.js";
import { dropKept, keep, readKept } from "./kept.js";

const OUTPUTS = ["topk_label", "topk_probability", "task_scores"];

// The graph takes photographs of any size, but WebAssembly's memory is small on phones, and a 50-megapixel photograph
// would need over 1 GB of it. Larger ones are shrunk by the browser first.
const MAX_PIXELS = 4_000_000;

let site; // where the page's own model and its statistics lie
let session;
let outputs; // what is asked of it
let metadata; // of the open file
let about; // what they say
let files; // how to get the bytes of the open file and of its statistics again: `{ model, statistics }`
let learner; // once something has been taught
let untaught; // promise of a learner of the open file
let loaded; // the two files that somebody opened in place of the page's own
let collected = []; // features of the pictures that are being taken

ort.env.wasm.wasmPaths = {
  mjs: new URL(threadsUrl, self.location.href).href,
  wasm: new URL(wasmUrl, self.location.href).href,
};
// Without cross-origin isolation there is no shared memory, and so one thread; sw.js brings it about.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

const tasks = { load, classify, prepare, collect, discard, learn, store, undo, forget, save, open, reset };

self.onmessage = async ({ data: { id, task, given } }) => {
  try {
    self.postMessage({ id, answer: await tasks[task](given) });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
};

/** The page's own model, or the one that somebody opened here, with what was taught. */
async function load(from) {
  site = from;
  const kept = site.statistics && (await readKept(site.page).catch(() => null));
  const isOpened = kept?.loaded && (await openFiles(kept.loaded).then(() => true, () => false));
  if (!isOpened) await openSite();
  const note = kept ? await restore(kept) : undefined;
  return { threads: ort.env.wasm.numThreads, note, ...told() };
}

async function openSite() {
  const model = await download(site.url, site.bytes);
  files = {
    model: () => download(site.url, site.bytes, false),
    statistics: async () => new Uint8Array(await (await fetched(site.statistics)).arrayBuffer()),
  };
  loaded = null;
  await start(model);
}

async function openFiles(pair) {
  const model = new Uint8Array(await pair.model.arrayBuffer());
  const statistics = new Uint8Array(await pair.statistics.arrayBuffer());
  const opened = new Learner(metadataOf(model), statistics);
  await start(model);
  files = { model: async () => new Uint8Array(await pair.model.arrayBuffer()), statistics: async () => statistics };
  loaded = pair;
  learner = opened;
}

/** What has been taught, or can be. */
async function taught() {
  if (learner) return learner;
  untaught ??= files.statistics().then((statistics) => new Learner(metadata, statistics));
  return untaught.catch((error) => {
    untaught = null; // the network may be back the next time
    throw error;
  });
}

async function start(model) {
  // 3: errors only. Warnings are about how graphs are written, nothing that a visitor can act on.
  const opened = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  await session?.release();
  session = opened;
  metadata = metadataOf(model);
  about = describe(metadata);
  outputs = [...OUTPUTS, ...["features", "distance"].filter((name) => session.outputNames.includes(name))];
  learner = untaught = null;
  collected = [];
  await session.run({ image: new ort.Tensor("uint8", new Uint8Array(64 * 64 * 3), [1, 64, 64, 3]) }, OUTPUTS); // warm up
}

/** Take up what was taught before the page was loaded; returns what there is to say about it. */
async function restore(kept) {
  try {
    learner = await taught();
    untaught = null;
    if (kept.base === about.statistics.sha256 && kept.features === about.features) return void learner.resume(kept);
    learner.adopt(kept);
    return "The page has a newer model; what was taught here has been added to it";
  } catch (error) {
    learner = null;
    return `What was taught here earlier does not belong to this model: ${error.message}`;
  }
}

/** What the page shows of the model's state. */
function told() {
  const { classes, tasks, opened } = learner ?? { ...about, opened: about };
  const selects = opened.taskScores !== null && tasks.length === opened.tasks.length;
  const additions = learner?.additions ?? [];
  const isTaught = additions.length > 0 || Boolean(learner?.forgotten.length);
  return { classes, tasks, selects_tasks: selects, additions, isTaught, opened: loaded ? loaded.model.name : null };
}

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the host answers ${response.status}`);
  return response;
}

async function download(url, bytes, tell = true) {
  const response = await fetched(url);
  const model = new Uint8Array(bytes);
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { value, done: finished } = await reader.read();
    if (finished) break;
    if (done + value.length > bytes) throw new Error(`${url} is larger than page.json says: upload both again`);
    model.set(value, done);
    done += value.length;
    if (tell) self.postMessage({ progress: done / bytes });
  }
  if (done < bytes) throw new Error(`${url} is ${done} bytes long, page.json says ${bytes}: upload both again`);
  return model;
}

async function classify(bitmap) {
  const start = performance.now();
  const { width, height } = bitmap;
  const input = pixels(bitmap);
  const decoded = performance.now();
  const said = await session.run({ image: input }, outputs);
  const { top, unknown, taskScores } = learner ? answerOf(said) : answerOfGraph(said);
  const finished = performance.now();
  return { top, unknown, taskScores, milliseconds: finished - decoded, decodeMilliseconds: decoded - start, width, height };
}

function answerOfGraph({ topk_label, topk_probability, task_scores, distance }) {
  return {
    top: topk_label.data.map((label, i) => ({ label, probability: topk_probability.data[i] })),
    unknown: about.threshold !== null && distance?.data[0] > about.threshold,
    taskScores: Array.from(task_scores.data),
  };
}

/** The same of what was learned since: the graph's features, and the head that a saved file would have. */
function answerOf({ features, task_scores }) {
  const { probabilities, unknown } = learner.predict(features.data);
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  return {
    top: order.map((c) => ({ label: learner.classes[c], probability: probabilities[c] })),
    unknown,
    taskScores: Array.from(task_scores.data),
  };
}

/** Do ahead what the first solve would have to wait for: the statistics, random numbers, compiled loops. */
async function prepare() {
  (await taught()).warmUp();
}

/** One more picture of what is to be learned; returns how many there are. */
async function collect(bitmap) {
  const { features } = await session.run({ image: pixels(bitmap) }, ["features"]);
  collected.push(features.data.slice());
  return collected.length;
}

function discard() {
  collected = [];
}

/** Learn class `name` from the pictures that were collected. */
async function learn(name) {
  const rows = collected;
  collected = [];
  const fresh = await taught();
  fresh.add(name, rows);
  [learner, untaught] = [fresh, null];
  return { images: rows.length, ...told() };
}

async function undo() {
  if (!learner) throw new Error("There is nothing to undo");
  learner.undo();
  return { isKept: await store(), ...told() };
}

/** Take a class away for good. */
async function forget(name) {
  const fresh = await taught();
  fresh.forget(name);
  [learner, untaught] = [fresh, null];
  return { isKept: await store(), ...told() };
}

/** Keep what was taught for the next visit; whether that was possible. */
async function store() {
  const { statistics, features } = learner.opened;
  return keep(site.page, { base: statistics.sha256, features, loaded, ...learner.kept() }).then(
    () => true,
    () => false,
  );
}

/** Model and statistics as two files. */
async function save() {
  const model = await files.model();
  const stem = (loaded?.model.name ?? `${about.role}.onnx`).replace(/( \(\d+\))?\.onnx$/, "");
  const made = (await taught()).save(model, stem);
  return [
    { name: made.model.name, blob: new Blob(made.model.pieces, { type: "application/octet-stream" }) },
    { name: made.statistics.name, blob: new Blob([made.statistics.content], { type: "application/octet-stream" }) },
  ];
}

/** Use a model that was saved earlier, here or by `cdl learn`: `{ model, statistics }`, two files. */
async function open(pair) {
  await openFiles(pair);
  return { isKept: await store(), ...told() };
}

/** Back to the page's own model, without what was taught. */
async function reset() {
  await dropKept(site.page).catch(() => undefined);
  if (loaded) await openSite();
  learner = null;
  return told();
}

/** uint8 RGB [1, height, width, 3] of a bitmap, which is closed. */
function pixels(bitmap) {
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const width = Math.max(1, Math.floor(bitmap.width * scale));
  const height = Math.max(1, Math.floor(bitmap.height * scale));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data: rgba } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [1, height, width, 3]);
}
