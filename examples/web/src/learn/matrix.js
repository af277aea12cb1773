// Dense linear algebra on Float64Array, row by row. Every product is of rows with rows, which lie in memory as they are
// read, four by two at a time.

const PANEL = 64; // rows of A, and
const DEPTH = 256; // columns, that stay in a processor's cache while B passes by

/**
 * A [n, k] · B [m, k]ᵀ → [n, m]. `lower`: B is lower triangular, of which the zeros are not read. `half`: the result is
 * symmetric, and only what is needed of it is computed.
 */
export function timesTransposed(a, b, n, m, k, { lower = false, half = false } = {}) {
  const out = new Float64Array(n * m);
  for (let from = 0; from < k; from += DEPTH) {
    for (let top = 0; top < n; top += PANEL) {
      const bottom = Math.min(n, top + PANEL);
      for (let j = lower ? from : 0; j < (half ? Math.min(m, bottom) : m); j += 2) {
        const end = Math.min(k, from + DEPTH, lower ? j + 2 : k);
        for (let i = half ? Math.max(top, j - (j % 4)) : top; i < bottom; i += 4) {
          if (j + 2 <= m && i + 4 <= bottom) block(a, b, out, i, j, m, k, from, end);
          else edge(a, b, out, i, Math.min(i + 4, bottom), j, Math.min(j + 2, m), m, k, from, end);
        }
      }
    }
  }
  return half ? mirrorLower(out, n) : out;
}

function edge(a, b, out, top, bottom, left, right, m, k, from, end) {
  for (let i = top; i < bottom; i++) {
    for (let j = left; j < right; j++) out[i * m + j] += dot(a, i * k + from, b, j * k + from, end - from);
  }
}

/** Four rows by two: eight sums that stay in registers. */
function block(a, b, out, i, j, m, k, from, end) {
  let p0 = i * k + from;
  let p1 = p0 + k;
  let p2 = p1 + k;
  let p3 = p2 + k;
  let q0 = j * k + from;
  let q1 = q0 + k;
  let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
  for (let t = from; t < end; t++) {
    const x = b[q0++];
    const y = b[q1++];
    const a0 = a[p0++];
    const a1 = a[p1++];
    const a2 = a[p2++];
    const a3 = a[p3++];
    s00 += a0 * x;
    s01 += a0 * y;
    s10 += a1 * x;
    s11 += a1 * y;
    s20 += a2 * x;
    s21 += a2 * y;
    s30 += a3 * x;
    s31 += a3 * y;
  }
  let at = i * m + j;
  out[at] += s00;
  out[at + 1] += s01;
  at += m;
  out[at] += s10;
  out[at + 1] += s11;
  at += m;
  out[at] += s20;
  out[at + 1] += s21;
  at += m;
  out[at] += s30;
  out[at + 1] += s31;
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
  for (let i = 0; i < size; i++) for (let j = 0; j < i; j++) matrix[j * size + i] = matrix[i * size + j];
  return matrix;
}

/** A [n, m] → Aᵀ [m, n]. */
export function transposed(a, n, m) {
  const out = new Float64Array(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) out[j * n + i] = a[i * m + j];
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
