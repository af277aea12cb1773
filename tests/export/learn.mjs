// What test_learn_in_javascript.py asks of the modules that the web page learns with: JSON in, JSON out.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, Learner, metadataOf } from "../../examples/web/src/learn/learner.js";

const { model, out, steps, test } = JSON.parse(readFileSync(0, "utf8"));
const opened = (path) => {
  const bytes = readFileSync(path);
  const metadata = metadataOf(bytes);
  return [bytes, new Learner(metadata, readFileSync(join(dirname(path), describe(metadata).statistics.file)))];
};
let [bytes, learner] = opened(model);
const refused = [];
for (const [what, ...given] of steps) {
  try {
    if (what === "reopen") {
      const kept = learner.kept();
      [bytes, learner] = opened(model);
      learner.resume(kept);
    } else if (what === "adopt") {
      const kept = learner.kept();
      [bytes, learner] = opened(given[0]);
      learner.adopt(kept);
    } else learner[what](...given);
  } catch (error) {
    refused.push(error.message);
  }
}
const files = learner.save(bytes, "student");
writeFileSync(join(out, files.model.name), Buffer.concat(files.model.pieces));
writeFileSync(join(out, files.statistics.name), files.statistics.content);
const { classes, additions, threshold } = learner;
const answers = test.map((row) => learner.predict(row));
console.log(JSON.stringify({ classes, additions, threshold, refused, answers }));
