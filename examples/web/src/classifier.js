// The worker as functions that return promises.

const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let lastId = 0;
let onProgress = () => {};

worker.onmessage = ({ data: { id, answer, error, progress } }) => {
  if (progress !== undefined) return onProgress(progress);
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(answer);
  else reject(new Error(error));
};

worker.onerror = (event) => {
  for (const { reject } of waiting.values()) reject(new Error(event.message || "the browser stopped the worker"));
  waiting.clear();
};

function ask(task, given, transfer = []) {
  const id = ++lastId;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, given }, transfer);
  });
}

/**
 * Fetch the model and get it ready. `site`: `{ page, url, bytes, statistics }`, `statistics` null for a model that cannot
 * be taught. `progress` is told the fraction that has arrived. Returns what the model knows, and `threads`.
 */
export function loadModel(site, progress) {
  onProgress = progress;
  return ask("load", site);
}

/** Classify an ImageBitmap, which is handed over: `{ top, unknown, taskScores, milliseconds, decodeMilliseconds, … }`. */
export const classify = (bitmap) => ask("classify", bitmap, [bitmap]);

/** Take an ImageBitmap, which is handed over, for what is to be learned; returns how many there are. */
export const collect = (bitmap) => ask("collect", bitmap, [bitmap]);

/** Get ready to learn, so that it is quick when there are pictures. */
export const prepare = () => ask("prepare");

/** Learn what was collected as class `name`, or do not. All but `discard` return what the model knows then. */
export const learn = (name) => ask("learn", name);
export const discard = () => ask("discard");

/** Keep what was learned for the next visit; whether this browser does. */
export const store = () => ask("store");
export const undo = () => ask("undo");
export const forget = (name) => ask("forget", name);
export const reset = () => ask("reset");
export const open = (files) => ask("open", files);

/** The model with what was taught: two files, `{ name, blob }`. */
export const save = () => ask("save");

/** What the file shows, upright (EXIF), its colours as stored: Python sees the same. */
export function decode(file) {
  return createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
}

export const UNREADABLE = "not an image that this browser can read";

/** Whether `decode` failed because of what is in the file. */
export const isUnreadable = ({ name }) => name === "InvalidStateError" || name === "EncodingError";
