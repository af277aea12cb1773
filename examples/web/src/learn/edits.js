// What changes in the file when it has learned: cdl_deploy/learn/head.py, where export's names for constants are told.
import { node } from "./onnx-file.js";
import { transposed } from "./matrix.js";

const [LOGITS, TASK_SCORES, TOPK_LABEL] = ["logits", "task_scores", "topk_label"];
const SELECTED = "task_scores/selected";
const [SCORES, ONE, BATCH, SIZE] = ["learn/scores", "learn/one", "learn/batch", "learn/size"];

/** The edits that make of `onnx`, which says `before` (`{ classes, tasks, topK, taskScores }`), what says `after`. */
export function editsFor(onnx, before, after, head) {
  const edits = { constants: new Map(), added: new Map(), shapes: new Map(), removed: new Set(), renamed: new Map(), nodes: [] };
  numbers(onnx, edits, head, before.classes.length);
  labels(onnx, before, after, edits);
  taskTable(onnx, before, after, edits);
  for (const [name, { shape }] of edits.constants) edits.shapes.set(name, shape);
  return edits;
}

/** Head and distance. */
function numbers(onnx, edits, { weight, bias, distance }, before) {
  const C = bias.length;
  const D = weight.length / C;
  const readers = onnx.consumers("head.weight");
  if (readers.length !== 1) throw changed(`constant 'head.weight' is read ${readers.length} times, expected once`);
  const byClass = readers[0].operator === "Transpose" || Boolean(readers[0].flags.transB);
  const set = (name, shape, values, size) => {
    const known = onnx.constants.get(name)?.shape.reduce((product, it) => product * it, 1);
    if (known !== size) throw changed(`constant '${name}' has ${known ?? "no"} numbers, expected ${size}`);
    if (!values.every(Number.isFinite)) throw new Error("the head that these pictures give is no number");
    edits.constants.set(name, { shape, values: Float32Array.from(values) });
  };
  set("head.weight", byClass ? [C, D] : [D, C], byClass ? weight : transposed(weight, C, D), D * before);
  if (onnx.constants.has("head.bias") || bias.some(Boolean)) set("head.bias", [C], bias, before);
  set("distance.centre", [D], distance.centre, D);
  set("distance.factor", [D, D], transposed(distance.inverse, D, D), D * D);
  set("distance.means", [D, C], transposed(distance.means, C, D).map((value) => -2 * value), D * before);
  set("distance.squares", [C], distance.squares, before);
}

/** Names, how many of the best are told, and the columns of everything that has one a class. */
function labels(onnx, before, after, edits) {
  const [names] = onnx.producer(TOPK_LABEL).inputs;
  const best = onnx.consumers(LOGITS).filter(({ operator }) => operator === "TopK");
  if (!onnx.constants.has(names) || best.length !== 1) throw changed("its labels are not where export puts them");
  edits.constants.set(names, { shape: [after.classes.length], values: after.classes });
  if (after.topK !== before.topK) {
    edits.constants.set(best[0].inputs[1], { shape: [1], values: BigInt64Array.of(BigInt(after.topK)) });
  }
  const ranked = onnx.behind(best[0].outputs);
  const byClass = onnx.behind(["head.weight", "head.bias", "distance.means", "distance.squares"]);
  ranked.forEach((name) => byClass.delete(name));
  for (const [name, shape] of onnx.declared()) {
    for (const [values, from, to] of [
      [byClass, before.classes.length, after.classes.length],
      [ranked, before.topK, after.topK],
    ]) {
      if (values.has(name) && from !== to && shape.includes(from)) {
        edits.shapes.set(name, shape.map((size) => (size === from ? to : null)));
      }
    }
  }
}

function taskTable(onnx, before, after, edits) {
  const T = after.tasks.length;
  if (before.tasks.length === T && before.taskScores === after.taskScores) return;
  edits.shapes.set(TASK_SCORES, [null, T]);
  const scores = { shape: [1, T], values: new Float32Array(T).fill(1 / T) };
  const made = onnx.producer(TASK_SCORES);
  if (after.taskScores !== null && onnx.constants.has(SCORES)) {
    edits.removed = new Set([SCORES, ONE, BATCH, SIZE, TASK_SCORES]);
    edits.renamed.set(SELECTED, TASK_SCORES);
    return;
  }
  const name = made.operator === "Expand" ? made.inputs[0] : "";
  if (before.taskScores === null && onnx.constants.has(name) && onnx.consumers(name).length === 1) {
    edits.constants.set(name, scores);
    return;
  }
  edits.renamed.set(TASK_SCORES, SELECTED);
  edits.added.set(SCORES, scores).set(ONE, { shape: [1], values: BigInt64Array.of(1n) });
  edits.nodes = [
    node("Shape", [LOGITS], BATCH, { start: 0, end: 1 }),
    node("Concat", [BATCH, ONE], SIZE, { axis: 0 }),
    node("Expand", [SCORES, SIZE], TASK_SCORES),
  ];
}

const changed = (what) => new Error(`the model is not as export writes it: ${what}; export it again`);
