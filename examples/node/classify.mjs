// Classify photographs with an exported model: `node classify.mjs student.onnx photo.jpg…`. One row a photograph.
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";

const [model, ...photographs] = process.argv.slice(2);
const session = await InferenceSession.create(model);
const outputs = ["topk_label", "topk_probability", "task_scores"];

for (const path of photographs) {
  const image = sharp(path).rotate().removeAlpha().toColourspace("srgb"); // rotate(): as EXIF says
  const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
  const pixels = new Tensor("uint8", data, [1, info.height, info.width, info.channels]);

  const { topk_label, topk_probability, task_scores } = await session.run({ image: pixels }, outputs);
  const task = task_scores.data.indexOf(Math.max(...task_scores.data)) + 1;
  console.log([path, topk_label.data[0], topk_probability.data[0].toFixed(4), `task ${task}`].join("\t"));
}
