// A new class, learned where the model runs: `node learn.mjs student.onnx new.onnx screw a.jpg b.jpg…`.
import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { InferenceSession } from "onnxruntime-node";
import { describe, Learner, metadataOf } from "../web/src/learn/learner.js";
import { fail, naming } from "./errors.mjs";
import { pixelsOf } from "./photograph.mjs";

const [path, out, name, ...photographs] = process.argv.slice(2);
if (!photographs.length) fail("usage: node learn.mjs MODEL.onnx NEW.onnx CLASS PHOTOGRAPH...");
const model = await readFile(path);
const metadata = await naming(path, () => metadataOf(model));
const { statistics } = await naming(path, () => describe(metadata));
if (!statistics) fail(`${path} names no statistics, so it cannot learn: export it without --no-statistics`);
const sums = join(dirname(path), statistics.file);
const learner = await naming(sums, async () => new Learner(metadata, await readFile(sums)));
const session = await InferenceSession.create(model);

const rows = [];
for (const photograph of photographs) {
  rows.push((await session.run({ image: await pixelsOf(photograph) }, ["features"])).features.data);
}

learner.add(name, rows);
const files = learner.save(model, basename(out, ".onnx"));
await writeFile(join(dirname(out), files.statistics.name), files.statistics.content); // before the model that names it
await writeFile(out, files.model.pieces);
console.log(`${out} knows ${learner.classes.length} classes; ${name} from ${rows.length === 1 ? "one photograph" : `${rows.length} photographs`}`);
