// Part of learn.py: processor time that the web page's modules need to solve a head, in seconds. `node learn_solve.mjs ROUNDS`
import { gather, merge } from "../examples/web/src/learn/statistics.js";
import { normals } from "../examples/web/src/learn/normals.js";
import { solveHead } from "../examples/web/src/learn/head.js";

const ROUNDS = Number(process.argv[2]);
const CLASSES = 11;
const EACH = 100;
const RULE = { priors: "uniform", shrinkage: null, penalty: null, intercept: true };

/** Of eleven classes, whose features vary most in the first of them. */
function sums(D) {
  const drawn = normals(1000 + D, CLASSES * (EACH + 1) * D);
  const row = (at, own) => {
    const mean = drawn.subarray((CLASSES * EACH + own) * D);
    return Float64Array.from({ length: D }, (_, d) => drawn[at * D + d] / Math.sqrt(1 + d / 16) + mean[d] / 2);
  };
  const classes = Array.from({ length: CLASSES }, (_, c) =>
    gather(`class ${c}`, Array.from({ length: EACH }, (_, i) => row(c * EACH + i, c))),
  );
  return classes.reduce(merge);
}

function timed(work) {
  const used = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(used);
  return (user + system) / 1e6;
}

const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

const found = [];
for (const [kind, D] of [["slda", 384], ["slda", 768], ["slda", 1152], ["ridge", 768], ["ncm", 768]]) {
  const of = sums(D);
  const [first, ...rounds] = Array.from({ length: ROUNDS + 1 }, () => timed(() => solveHead(of, { ...RULE, kind })));
  found.push({
    head: kind,
    features: D,
    "the first time": first,
    median: median(rounds),
  });
}
console.log(JSON.stringify(found));
