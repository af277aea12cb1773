// Ridge regression on one-hot targets, λ by generalised cross-validation: cdl_deploy/closed_form/ridge.py and
// ridge_penalty.py have the formulas. GCV needs eigenvalues of the features' second moments and the targets in their
// basis; the eigenvectors themselves are not needed, so rotations are applied to the targets alone.
import { lowerFactor, solveLower, solveUpper } from "./cholesky.js";
import { addOuter, addProduct, addScaled, dot, part, trace, transposed } from "./matrix.js";
import { dimension, images } from "./statistics.js";

const GRID = Array.from({ length: 21 }, (_, step) => 10 ** ((step - 16) / 2));
const RANK = 1e-12;
const EQUAL = 1e-6;
const REFLECTIONS = 32;

/** The sums of the least-squares problem: `{ gram [D, D], cross [C, D], square, images, free, mean [D], targetMean }`. */
export function regression(sums, intercept) {
  const D = dimension(sums);
  const C = sums.classes.length;
  const N = images(sums);
  const mean = new Float64Array(D);
  const share = sums.counts.map((n) => (intercept ? n / N : 0));
  share.forEach((part, c) => addScaled(mean, 0, sums.means, c * D, part, D));
  const offset = sums.means.map((value, i) => value - mean[i % D]);
  const gram = addOuter(sums.scatter.slice(), offset, sums.counts, D);
  const cross = new Float64Array(C * D);
  let square = 0;
  // Column c of the targets is 1 − share_c for its own images and −share_c for others.
  const common = new Float64Array(D);
  sums.counts.forEach((n, c) => addScaled(common, 0, offset, c * D, n, D));
  sums.counts.forEach((n, c) => {
    for (let d = 0; d < D; d++) cross[c * D + d] = n * offset[c * D + d] - share[c] * common[d];
    square += n * (1 - share[c]) ** 2 + (N - n) * share[c] ** 2;
  });
  return { gram, cross, square, images: sums.noiseImages, free: intercept ? 1 : 0, mean, targetMean: share, C, D };
}

/** `{ weight [C, D], bias [C] }` with λ = `penalty`. */
export function solveRidge({ gram, cross, mean, targetMean, C, D }, penalty) {
  const matrix = gram.slice();
  for (let i = 0; i < D; i++) matrix[i * D + i] += penalty;
  const L = lowerFactor(matrix, D);
  const weight = solveUpper(L, solveLower(L, cross, C, D), C, D);
  return { weight, bias: Float64Array.from(targetMean, (t, c) => t - dot(weight, c * D, mean, 0, D)) };
}

/** λ by generalised cross-validation. */
export function choosePenalty({ gram, cross, square, images: N, free, C, D }) {
  const size = trace(gram, D) / D;
  if (!(size > 0)) return 1;
  const { values, explained } = inEigenbasis(gram, cross, C, D);
  const largest = Math.max(...values, 0);
  const used = [...values.keys()].filter((j) => values[j] > RANK * largest);
  const outside = Math.max(square - used.reduce((sum, j) => sum + explained[j] / values[j], 0), 0);
  const scores = GRID.map((part) => {
    let residual = outside;
    let freedom = Math.max(N - free - used.length, 0);
    for (const j of used) {
      const kept = (part * size) / (values[j] + part * size);
      residual += kept * kept * (explained[j] / values[j]);
      freedom += kept;
    }
    return (N * residual) / Math.max(freedom, Number.MIN_VALUE) ** 2;
  });
  const best = Math.min(...scores) * (1 + EQUAL);
  return GRID[scores.findLastIndex((score) => score <= best)] * size;
}

/**
 * Eigenvalues of a symmetric matrix, and for each the sum of squares of the rows of `cross` [C, D] along its eigenvector.
 *
 * Householder's reduction to a tridiagonal matrix, then the QL method with implicit shifts (Golub, Van Loan, "Matrix
 * Computations", 8.3).
 */
export function inEigenbasis(matrix, cross, C, D) {
  const P = cross.slice();
  const { d, e } = tridiagonal(matrix.slice(), P, C, D);
  diagonalise(d, e, P, C, D);
  const explained = new Float64Array(D);
  for (let c = 0; c < C; c++) for (let j = 0; j < D; j++) explained[j] += P[c * D + j] ** 2;
  return { values: d, explained };
}

/**
 * Diagonal and what is beside it; the reflections are applied to the rows of P. A becomes A − Σ (v wᵀ + w vᵀ), which is
 * done for `REFLECTIONS` of them at a time, as one product (Dongarra, Sorensen, Hammarling, "Block reduction of matrices
 * to condensed forms", 1989).
 */
function tridiagonal(A, P, C, D) {
  const d = new Float64Array(D);
  const e = new Float64Array(D);
  for (let top = 0; top < D; top += REFLECTIONS) {
    const bottom = Math.min(D, top + REFLECTIONS);
    const V = new Float64Array(REFLECTIONS * D);
    const W = new Float64Array(REFLECTIONS * D);
    for (let k = top, at = 0; k < bottom; k++, at += D) {
      const v = V.subarray(at, at + D);
      const w = W.subarray(at, at + D);
      v.set(A.subarray(k * D + k, (k + 1) * D), k);
      for (let j = 0; j < at; j += D) {
        addScaled(v, k, W, j + k, -V[j + k], D - k);
        addScaled(v, k, V, j + k, -W[j + k], D - k);
      }
      d[k] = v[k];
      v[k] = 0;
      if (k < D - 1) e[k] = v[k + 1];
      const behind = k + 1;
      const left = D - behind;
      const length = Math.sqrt(dot(v, behind, v, behind, left));
      if (k >= D - 2 || !(length > 0)) {
        v.fill(0);
        continue;
      }
      // (I − 2 v vᵀ/‖v‖²) makes row k zero behind its neighbour.
      e[k] = v[behind] > 0 ? -length : length;
      v[behind] -= e[k];
      const beta = 2 / dot(v, behind, v, behind, left);
      for (let i = behind; i < D; i++) w[i] = dot(A, i * D + behind, v, behind, left);
      for (let j = 0; j < at; j += D) {
        const [alongV, alongW] = [V, W].map((rows) => dot(rows, j + behind, v, behind, left));
        addScaled(w, behind, V, j + behind, -alongW, left);
        addScaled(w, behind, W, j + behind, -alongV, left);
      }
      for (let i = behind; i < D; i++) w[i] *= beta;
      addScaled(w, behind, v, behind, (-beta / 2) * dot(w, behind, v, behind, left), left);
      for (let c = 0; c < C; c++) {
        addScaled(P, c * D + behind, v, behind, -beta * dot(P, c * D + behind, v, behind, left), left);
      }
    }
    const [one, other] = [[V, W], [W, V]].map((pair) => beside(...pair, D));
    const both = 2 * REFLECTIONS;
    const from = (values) => part(values, both, both * bottom);
    const rest = part(A, D, bottom * D + bottom);
    addProduct(rest, from(one), from(other), D - bottom, D - bottom, both, { sign: -1 });
  }
  return { d, e };
}

/** [D, 2n]: two matrices [n, D] transposed, side by side. */
function beside(one, other, D) {
  const rows = new Float64Array(2 * one.length);
  rows.set(one);
  rows.set(other, one.length);
  return transposed(rows, rows.length / D, D);
}

/** `d`, `e`: diagonal and what is beside it; the rotations that make `e` zero are applied to the columns of P. */
function diagonalise(d, e, P, C, D) {
  for (let l = 0; l < D; l++) {
    for (let turn = 0; turn < 60; turn++) {
      let m = l;
      while (m < D - 1 && Math.abs(e[m]) > Number.EPSILON * (Math.abs(d[m]) + Math.abs(d[m + 1]))) m++;
      if (m === l) break;
      let g = (d[l + 1] - d[l]) / (2 * e[l]);
      let r = Math.hypot(g, 1);
      g = d[m] - d[l] + e[l] / (g + (g >= 0 ? r : -r));
      let s = 1;
      let c = 1;
      let p = 0;
      let i = m - 1;
      for (; i >= l; i--) {
        const f = s * e[i];
        const b = c * e[i];
        e[i + 1] = r = Math.hypot(f, g);
        if (r === 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        d[i + 1] = g + (p = s * r);
        g = c * r - b;
        for (let row = 0, at = i; row < C; row++, at += D) {
          const next = P[at + 1];
          P[at + 1] = s * P[at] + c * next;
          P[at] = c * P[at] - s * next;
        }
      }
      if (r === 0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
}
