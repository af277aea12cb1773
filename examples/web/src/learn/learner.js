// A model that learns where it runs: images' features in, the same model with a new head out. What `Learner` of
// cdl_deploy/learn is in Python; plain JavaScript for browsers and Node.js, without a dependency.
import { asItIs, learnedBundle, readBundle, summary, writeBundle } from "./bundle.js";
import { editsFor } from "./edits.js";
import { featureMap } from "./features.js";
import { distanceTo, solveHead } from "./head.js";
import { dot } from "./matrix.js";
import { checkName } from "./names.js";
import { metadataOf, OnnxFile } from "./onnx-file.js";
import { plain } from "./python-json.js";
import { sha256 } from "./sha256.js";
import { partDigest, readStatistics, writeStatistics } from "./statistics-file.js";
import { dimension, forget, forgetAdded, gather, merge, total } from "./statistics.js";

const KEEP = 32; // additions that are kept apart, and can be taken back

export { metadataOf };

/** What a model's metadata say about it, and whether it can learn: `statistics` is `{ file, sha256 }` then. */
export const describe = (metadata) => summary(readBundle(metadata));

export class Learner {
  /** `metadata`: of the model, from `metadataOf`; `statistics`: the content of that file, Uint8Array. */
  constructor(metadata, statistics) {
    this.metadata = metadata;
    this.bundle = readBundle(this.metadata);
    const about = summary(this.bundle);
    if (!about.features || !about.statistics) throw new Error("this model was exported without statistics, so it cannot learn");
    if (sha256(statistics) !== about.statistics.sha256) {
      throw new Error(`these are not the statistics that the model names, ${about.statistics.file}: take both files together`);
    }
    this.opened = about;
    this.restore(statistics);
    this.forgotten = []; // names of classes, since the model was opened
    if (this.classes.join("\n") !== about.classes.join("\n")) throw new Error("the statistics have other classes than the model");
    this.tasks = about.tasks;
    this.before = this.sums.additions.length ? (this.bundle.get("before_learning") ?? null) : asItIs(this.bundle);
  }

  /** Take up what an earlier learner of this model had learned, from its `kept()`. */
  resume({ statistics, tasks, before, forgotten = [] }) {
    this.restore(statistics);
    this.tasks = tasks;
    this.forgotten = forgotten;
    if (before === "lost") this.before = null;
  }

  restore(statistics) {
    this.sums = readStatistics(statistics, this.opened.features);
    this.total = total(this.sums);
    const header = plain(this.sums.header);
    this.rule = header.rule;
    if (this.rule.teacher_weight > 0) throw new Error("its head weighs a teacher's outputs, so it cannot learn here");
    this.map ??= featureMap(header.features);
    this.solved = null;
  }

  /** What `resume` needs, for a store that outlives the page. */
  kept() {
    const { tasks, forgotten } = this;
    return { statistics: writeStatistics(this.sums), tasks, before: this.before ? "there" : "lost", forgotten };
  }

  get classes() {
    return this.total.classes;
  }

  /** Of every addition that can be taken back, oldest first: `{ name, images }`; no name where all of it is forgotten. */
  get additions() {
    return this.sums.additions.map(({ classes, counts }) => ({
      name: classes.join(", "),
      images: counts.reduce((sum, n) => sum + n, 0),
    }));
  }

  /** Learn class `name`, new or known, from what the model's output `features` is for some images. */
  add(name, features) {
    checkName(name, this.classes);
    if (!features.length) throw new Error("there is no picture to learn from");
    this.take(gather(name, features.map(this.map)));
  }

  /** Do again what a learner of another base did, whose features are the same: additions, and classes forgotten. */
  adopt({ statistics, forgotten = [] }) {
    for (const name of forgotten) if (this.classes.includes(name)) this.forget(name);
    for (const addition of readStatistics(statistics, this.opened.features).additions) this.take(addition);
  }

  take(addition) {
    const { base, additions } = this.sums;
    if (additions.some((it) => partDigest(it) === partDigest(addition))) {
      throw new Error("these very pictures have been added already, and would count twice");
    }
    const grown = merge(this.total, addition);
    const apart = [...additions, addition];
    const keep = Math.min(KEEP, apart.length);
    const into = apart.splice(0, apart.length - keep).reduce(merge, base);
    this.solved = solveHead(grown, this.rule); // throws before anything has changed
    this.sums = { ...this.sums, base: into, additions: apart, keep };
    if (into !== base) this.before = null;
    const added = addition.classes.filter((name) => !this.classes.includes(name));
    if (added.length) this.tasks = [...this.tasks, added];
    this.total = grown;
  }

  /** Take the last addition back. */
  undo() {
    const { additions } = this.sums;
    if (!additions.length) throw new Error("There is nothing to undo");
    this.sums = { ...this.sums, additions: additions.slice(0, -1), keep: Math.max(1, additions.length - 1) };
    this.total = total(this.sums);
    const known = new Set(this.classes);
    this.tasks = this.tasks
      .map((task) => [task, task.filter((name) => known.has(name))])
      .filter(([task, rest]) => rest.length || !task.length)
      .map(([, rest]) => rest);
    this.solved = null;
  }

  /** Take a class away for good, from the base and from every addition: no undo brings it back. */
  forget(name) {
    if (!this.classes.includes(name)) throw new Error(`There is no class “${name}” to forget`);
    if (this.classes.length === 1) throw new Error(`“${name}” is the only class: without it there is nothing to tell apart`);
    const { base, additions } = this.sums;
    let before = base;
    const rest = additions.map((addition) => {
      const left = forgetAdded(addition, name, before);
      before = merge(before, addition);
      return left;
    });
    this.sums = { ...this.sums, base: forget(base, name), additions: rest };
    this.total = total(this.sums);
    this.tasks = this.tasks.map((task) => task.filter((it) => it !== name));
    this.forgotten = [...this.forgotten.filter((it) => it !== name), name];
    this.before = null;
    this.solved = null;
  }

  /** Solve once, so that the next time is quick: random numbers are drawn and loops compiled then. */
  warmUp() {
    solveHead(this.total, this.rule);
  }

  /** The head, solved where that has not been done: `{ weight, bias, distance, threshold }`. */
  get head() {
    this.solved ??= solveHead(this.total, this.rule);
    return this.solved;
  }

  /** From which distance on a picture is of no class, as a saved file says it. */
  get threshold() {
    const undone = this.before && !this.sums.additions.length;
    return undone ? plain(this.before.unknown_threshold) : this.head.threshold;
  }

  /** What a saved file says of an image, from the output `features`: `{ logits, probabilities, distance, unknown }`. */
  predict(features) {
    const { weight, bias, distance } = this.head;
    const values = this.map(features);
    const logits = Array.from(bias, (b, c) => b + dot(values, 0, weight, c * values.length, values.length));
    const best = Math.max(...logits);
    const shares = logits.map((value) => Math.exp(value - best));
    const sum = shares.reduce((all, value) => all + value, 0);
    const far = distanceTo(distance, values);
    const { threshold } = this;
    return {
      logits,
      probabilities: shares.map((value) => value / sum),
      distance: far,
      unknown: threshold !== null && far > threshold,
    };
  }

  /**
   * The two files that `cdl inspect` and `cdl learn` read, from the bytes of the model that was opened:
   * `{ model: { name, pieces }, statistics: { name, content } }`. `stem`: of the names.
   */
  save(model, stem = this.opened.role) {
    const content = writeStatistics(this.sums);
    const digest = sha256(content);
    const exported = !this.sums.additions.length && this.before && plain(this.before.statistics);
    const name = exported?.sha256 === digest ? exported.file : `${stem}.statistics.${digest.slice(0, 12)}.safetensors`;
    const { classes, tasks, before, head, threshold } = this;
    const state = { classes, tasks, additions: this.sums.additions, before };
    const bundle = learnedBundle(this.bundle, state, { file: name, sha256: digest }, dimension(this.total), threshold);
    const onnx = new OnnxFile(model);
    const pieces = onnx.edited(editsFor(onnx, this.opened, summary(bundle), head), writeBundle(this.metadata, bundle));
    return { model: { name: `${stem}.onnx`, pieces }, statistics: { name, content } };
  }
}
