// The worker as two functions that return promises.

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

function ask(message, transfer = []) {
  const id = ++lastId;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...message }, transfer);
  });
}

/** Fetch the model and get it ready: `{ threads }`. `progress` is told the fraction that has arrived. */
export function loadModel(url, bytes, progress) {
  onProgress = progress;
  return ask({ load: { url, bytes } });
}

/** Classify an ImageBitmap, which is handed over: `{ top, taskScores, milliseconds, decodeMilliseconds, … }`. */
export function classify(bitmap) {
  return ask({ bitmap }, [bitmap]);
}

/** What the file shows, upright (EXIF), its colours as stored: Python sees the same. */
export function decode(file) {
  return createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
}
