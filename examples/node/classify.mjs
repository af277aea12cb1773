// Classify photographs with an exported model: `node classify.mjs student.onnx photo.jpg…`. One row a photograph.
import { InferenceSession } from "onnxruntime-node";
import { fail } from "./errors.mjs";
import { pixelsOf } from "./photograph.mjs";

const [model, ...photographs] = process.argv.slice(2);
if (!photographs.length) fail("usage: node classify.mjs MODEL.onnx PHOTOGRAPH...");
const session = await InferenceSession.create(model);
const outputs = ["topk_label", "topk_probability", "task_scores"];

for (const path of photographs) {
  const { topk_label, topk_probability, task_scores } = await session.run({ image: await pixelsOf(path) }, outputs);
  const scores = [...task_scores.data];
  const best = Math.max(...scores);
  const task = Math.min(...scores) < best ? [`task ${scores.indexOf(best) + 1}`] : []; // all alike: none was selected
  console.log([path, topk_label.data[0], topk_probability.data[0].toFixed(4), ...task].join("\t"));
}
