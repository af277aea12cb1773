// What test_head_in_javascript.py asks of the arithmetic that the web page learns with: JSON in, JSON out.
import { readFileSync } from "node:fs";
import { inverseLower, lowerFactor, solveLower, solveUpper } from "../../examples/web/src/learn/cholesky.js";
import { solveHead } from "../../examples/web/src/learn/head.js";
import { timesTransposed } from "../../examples/web/src/learn/matrix.js";
import { normals } from "../../examples/web/src/learn/normals.js";

const floats = (values) => Float64Array.from(values);
const listed = (name, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
const tasks = {
  product: ({ a, b, n, m, k, options }) => timesTransposed(floats(a), floats(b), n, m, k, options),
  triangular: ({ matrix, rows, n, D }) => {
    const L = lowerFactor(floats(matrix), D);
    const [lower, upper] = [solveLower, solveUpper].map((solve) => solve(L, floats(rows), n, D));
    return { L, lower, upper, inverse: inverseLower(L, D) };
  },
  normals: ({ seed, counts }) => counts.map((count) => normals(seed, count)).at(-1),
  head: ({ sums, rule }) => {
    const arrays = ["means", "spread", "scatter", "overconfidence"].map((name) => [name, floats(sums[name])]);
    return solveHead({ ...sums, ...Object.fromEntries(arrays) }, rule);
  },
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(([task, given]) => tasks[task](given)), listed));
