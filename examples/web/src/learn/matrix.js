// Dense linear algebra on Float64Array, row by row. Every product is of rows with rows, sixteen sums at a time (tile.js).
import { outer, room } from "./tile.js";

const SIDE = 4; // of a tile
const PANEL = 64; // rows of A, and
const DEPTH = 256; // columns, that stay in a processor's cache while B passes by

/** Rows of a matrix from place `at` on, `stride` numbers apart. */
export const part = (values, stride, at = 0) => ({ values, stride, at });

/**
 * out += sign · A [n, k] · B [m, k]ᵀ, all three of them `part`s.
 *
 * What is zero is passed over: `lower`, `upper`: of "a" or "b" or of both "ab", where row i is zero behind, or before,
 * column i. `half`: of the result only what is on and below the diagonal is needed; above it there may be anything.
 */
export function addProduct(out, a, b, n, m, k, { sign = 1, lower = "", upper = "", half = false } = {}) {
  const [aLower, bLower] = [lower.includes("a"), lower.includes("b")];
  const [aUpper, bUpper] = [upper.includes("a"), upper.includes("b")];
  const startA = SIDE * SIDE; // the tile's result comes before
  const startB = startA + PANEL * DEPTH;
  for (let from = 0; from < k; from += DEPTH) {
    const depth = Math.min(DEPTH, k - from);
    const memory = room(startB + (m + SIDE) * depth);
    pack(memory, startB, b, 0, m, from, depth);
    for (let top = 0; top < n; top += PANEL) {
      const bottom = Math.min(n, top + PANEL);
      if ((aLower && from >= bottom) || (aUpper && from + depth <= top)) continue;
      pack(memory, startA, a, top, bottom, from, depth);
      for (let j = bLower ? from - (from % SIDE) : 0; j < (half ? Math.min(m, bottom) : m); j += SIDE) {
        if (bUpper && j >= from + depth) break;
        for (let i = half ? Math.max(top, j) : top; i < bottom; i += SIDE) {
          const first = Math.max(0, aUpper ? i - from : 0, bUpper ? j - from : 0);
          const last = Math.min(depth, aLower ? i + SIDE - from : depth, bLower ? j + SIDE - from : depth);
          if (first >= last) continue;
          outer(startA + (i - top) * depth + SIDE * first, startB + j * depth + SIDE * first, last - first);
          const at = out.at + i * out.stride + j;
          if (i + SIDE <= bottom && j + SIDE <= m) addTile(out.values, at, out.stride, sign, memory);
          else addEdge(out.values, at, out.stride, sign, memory, bottom - i, m - j);
        }
      }
    }
  }
}

function addTile(values, at, stride, sign, memory) {
  for (let t = 0; t < 16; t += 4, at += stride) {
    values[at] += sign * memory[t];
    values[at + 1] += sign * memory[t + 1];
    values[at + 2] += sign * memory[t + 2];
    values[at + 3] += sign * memory[t + 3];
  }
}

function addEdge(values, at, stride, sign, memory, rows, columns) {
  for (let y = 0; y < Math.min(SIDE, rows); y++, at += stride) {
    for (let x = 0; x < Math.min(SIDE, columns); x++) values[at + x] += sign * memory[SIDE * y + x];
  }
}

/** Copy columns of the rows from `top` on: four rows next to each other, number by number; behind the last row zeros. */
function pack(memory, start, { values, stride, at }, top, bottom, from, depth) {
  let to = start;
  let i = top;
  for (; i + SIDE <= bottom; i += SIDE) {
    let p = at + i * stride + from;
    for (const end = p + depth; p < end; p++, to += SIDE) {
      memory[to] = values[p];
      memory[to + 1] = values[p + stride];
      memory[to + 2] = values[p + 2 * stride];
      memory[to + 3] = values[p + 3 * stride];
    }
  }
  if (i === bottom) return;
  for (let t = 0; t < depth; t++) {
    for (let y = 0; y < SIDE; y++, to++) memory[to] = i + y < bottom ? values[at + (i + y) * stride + from + t] : 0;
  }
}

/** A [n, k] · B [m, k]ᵀ → [n, m]; options as `addProduct` has them, and with `half` the result is symmetric. */
export function timesTransposed(a, b, n, m, k, options = {}) {
  const out = new Float64Array(n * m);
  addProduct(part(out, m), part(a, k), part(b, k), n, m, k, options);
  return options.half ? mirrorLower(out, n) : out;
}

/** Σ over `count` numbers of a from `p` on times b from `q` on. */
export function dot(a, p, b, q, count) {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  const end = p + count;
  for (; p + 4 <= end; p += 4, q += 4) {
    s0 += a[p] * b[q];
    s1 += a[p + 1] * b[q + 1];
    s2 += a[p + 2] * b[q + 2];
    s3 += a[p + 3] * b[q + 3];
  }
  for (; p < end; p++, q++) s0 += a[p] * b[q];
  return s0 + s1 + (s2 + s3);
}

/** out[o …] += factor · row[p …], `count` numbers. */
export function addScaled(out, o, row, p, factor, count) {
  for (const end = p + count; p < end; p++, o++) out[o] += factor * row[p];
}

/** Copy what is below the diagonal of a square matrix to above it. */
export function mirrorLower(matrix, size) {
  for (let top = 0; top < size; top += PANEL) {
    for (let left = 0; left <= top; left += PANEL) {
      for (let i = top; i < Math.min(size, top + PANEL); i++) {
        for (let j = left; j < Math.min(i, left + PANEL); j++) matrix[j * size + i] = matrix[i * size + j];
      }
    }
  }
  return matrix;
}

/** A [n, m] → Aᵀ [m, n]. */
export function transposed(a, n, m) {
  const out = new Float64Array(n * m);
  for (let top = 0; top < n; top += PANEL) {
    for (let j = 0; j < m; j++) {
      for (let i = top; i < Math.min(n, top + PANEL); i++) out[j * n + i] = a[i * m + j];
    }
  }
  return out;
}

/** Add Σ_c weight_c row_c row_cᵀ to `into` [D, D], exactly symmetric; rows of weight 0 are passed over. */
export function addOuter(into, rows, weights, D) {
  weights.forEach((weight, c) => {
    if (!weight) return;
    for (let i = 0; i < D; i++) {
      const factor = weight * rows[c * D + i];
      if (factor) addScaled(into, i * D, rows, c * D, factor, i + 1);
    }
  });
  return mirrorLower(into, D);
}

/** The sum of the diagonal. */
export function trace(matrix, size) {
  let sum = 0;
  for (let i = 0; i < size; i++) sum += matrix[i * size + i];
  return sum;
}
