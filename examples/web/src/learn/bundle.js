// What a model says about itself, in `cdl.*` metadata: cdl_deploy/runtime/bundle.py. Values keep their numbers' text.
import { Digits, dump, float, parse, plain } from "./python-json.js";

const FORMAT_VERSION = 1;
const MAX_TOP_K = 5;

/** The metadata (name → text) of a model that cdl exported, as values: name without `cdl.` → value. */
export function readBundle(metadata) {
  if (!metadata.has("cdl.format_version")) throw new Error("this is an ONNX model that cdl did not export");
  const bundle = new Map();
  for (const [key, text] of metadata) if (key.startsWith("cdl.")) bundle.set(key.slice(4), parse(text));
  if (plain(bundle.get("format_version")) > FORMAT_VERSION) {
    throw new Error("this model is of a later format: use the page of the program that exported it");
  }
  return bundle;
}

/** The metadata with what `bundle` says in place of what they said. */
export function writeBundle(metadata, bundle) {
  const kept = [...metadata].filter(([key]) => !key.startsWith("cdl."));
  return new Map([...kept, ...[...bundle].map(([name, value]) => [`cdl.${name}`, dump(value)])]);
}

/** What the page and the edits read of it. */
export function summary(bundle) {
  const get = (name) => plain(bundle.get(name) ?? null);
  return {
    classes: get("classes"),
    tasks: get("tasks"),
    topK: get("top_k"),
    taskScores: get("method").task_scores ?? null,
    threshold: get("unknown_threshold"),
    features: get("features")?.sha256 ?? null,
    statistics: get("statistics"),
    role: get("role"),
    producer: get("producer"),
  };
}

/** What a file without additions says, for when they are taken back. */
export function asItIs(bundle) {
  const value = (name) => bundle.get(name) ?? null;
  return {
    statistics: value("statistics"),
    accuracy: value("accuracy"),
    parity: value("parity"),
    unknown_threshold: value("unknown_threshold"),
    unknown_rule: value("unknown_rule"),
    task_scores: value("method").task_scores ?? null,
  };
}

/**
 * What the new file says. `state`: `{ classes, tasks, additions, before }`; `statistics`: `{ file, sha256 }`; `D`: length
 * of φ; `threshold`: of the unknown.
 */
export function learnedBundle(old, { classes, tasks, additions, before }, statistics, D, threshold) {
  const bundle = new Map(old);
  const was = summary(old);
  const set = (name, value) => (value === null && OMITTED.has(name) ? bundle.delete(name) : bundle.set(name, value));
  const more = (classes.length - was.classes.length) * (D + 1);
  set("classes", classes);
  set("tasks", tasks);
  set("parameters", new Digits(String(plain(old.get("parameters")) + more)));
  set("top_k", new Digits(String(Math.min(MAX_TOP_K, classes.length))));
  set("statistics", statistics);
  const undone = before && !additions.length;
  const taskScores = undone ? before.task_scores : tasks.length === was.tasks.length ? was.taskScores : null;
  set("method", { ...old.get("method"), task_scores: taskScores });
  set("accuracy", undone ? before.accuracy : null);
  set("parity", undone ? before.parity : null);
  set("unknown_threshold", undone ? before.unknown_threshold : float(threshold));
  set("unknown_rule", undone ? before.unknown_rule : { percent: float(95), source: "statistics", images: null });
  set("before_learning", additions.length ? before : null);
  return bundle;
}

const OMITTED = new Set(["statistics", "unknown_threshold", "unknown_rule", "before_learning"]);
