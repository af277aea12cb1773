// A new class, learned where the model runs: `node learn.mjs student.onnx new.onnx screw a.jpg b.jpg…`.
import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";
import { describe, Learner, metadataOf } from "../web/src/learn/learner.js";

const [path, out, name, ...photographs] = process.argv.slice(2);
const model = await readFile(path);
const session = await InferenceSession.create(model);
const metadata = metadataOf(model);
const learner = new Learner(metadata, await readFile(join(dirname(path), describe(metadata).statistics.file)));

const rows = [];
for (const photograph of photographs) {
  const image = sharp(photograph).rotate().removeAlpha().toColourspace("srgb"); // rotate(): as EXIF says
  const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
  const pixels = new Tensor("uint8", data, [1, info.height, info.width, info.channels]);
  rows.push((await session.run({ image: pixels }, ["features"])).features.data);
}

learner.add(name, rows);
const files = learner.save(model, basename(out, ".onnx"));
await writeFile(join(dirname(out), files.statistics.name), files.statistics.content); // before the model that names it
await writeFile(out, files.model.pieces);
console.log(`${out} knows ${learner.classes.length} classes; ${name} from ${rows.length} photographs`);
