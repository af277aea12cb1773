// The model, off the main thread: a bitmap in, the answer out. The page stays responsive while it works.
import * as ort from "onnxruntime-web/wasm";
import threadsUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

const OUTPUTS = ["topk_label", "topk_probability", "task_scores"];

// The graph takes photographs of any size, but WebAssembly's memory is small on phones, and a 50-megapixel photograph
// would need over 1 GB of it. Larger ones are shrunk by the browser first.
const MAX_PIXELS = 4_000_000;

let session;


ort.env.wasm.wasmPaths = {
  mjs: new URL(threadsUrl, self.location.href).href,
  wasm: new URL(wasmUrl, self.location.href).href,
};
// Without cross-origin isolation there is no shared memory, and so one thread; sw.js brings it about.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

self.onmessage = async ({ data: { id, load, bitmap } }) => {
  try {
    const answer = load ? await loadModel(load) : await classify(bitmap);
    self.postMessage({ id, answer });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
};

async function loadModel({ url, bytes }) {
  const model = await download(url, bytes);
  // 3: errors only. Warnings are about how graphs are written, nothing that a visitor can act on.
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  await session.run({ image: new ort.Tensor("uint8", new Uint8Array(64 * 64 * 3), [1, 64, 64, 3]) }, OUTPUTS); // warm up
  return { threads: ort.env.wasm.numThreads };
}

async function download(url, bytes) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the host answers ${response.status}`);
  const model = new Uint8Array(bytes);
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { value, done: finished } = await reader.read();
    if (finished) break;
    if (done + value.length > bytes) throw new Error(`${url} is larger than page.json says: upload both again`);
    model.set(value, done);
    done += value.length;
    self.postMessage({ progress: done / bytes });
  }
  if (done < bytes) throw new Error(`${url} is ${done} bytes long, page.json says ${bytes}: upload both again`);
  return model;
}

async function classify(bitmap) {
  const start = performance.now();
  const { width, height } = bitmap;
  const input = pixels(bitmap);
  const decoded = performance.now();
  const { topk_label, topk_probability, task_scores } = await session.run({ image: input }, OUTPUTS);
  const finished = performance.now();
  return {
    top: topk_label.data.map((label, i) => ({ label, probability: topk_probability.data[i] })),
    taskScores: Array.from(task_scores.data),
    milliseconds: finished - decoded,
    decodeMilliseconds: decoded - start,
    width,
    height,
  };
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
