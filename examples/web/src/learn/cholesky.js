// Solves with a symmetric positive definite matrix, in float64, block by block: so nearly all of it is matrix products.
import { addProduct, addScaled, dot, part, transposed } from "./matrix.js";

const BLOCK = 64;

/** [D, D]: lower triangular L with L Lᵀ = `matrix`; throws a RangeError where that is not positive definite. */
export function lowerFactor(matrix, D) {
  const L = new Float64Array(D * D);
  for (let left = 0; left < D; left += BLOCK) {
    const right = Math.min(D, left + BLOCK);
    for (let i = left; i < D; i++) L.set(matrix.subarray(i * D + left, i * D + right), i * D + left);
    const before = part(L, D, left * D);
    addProduct(part(L, D, left * D + left), before, before, D - left, right - left, left, { sign: -1 });
    for (let i = left; i < right; i++) {
      for (let j = left; j <= i; j++) {
        const rest = L[i * D + j] - dot(L, i * D + left, L, j * D + left, j - left);
        if (i === j && !(rest > 0)) throw new RangeError("the matrix is not positive definite");
        L[i * D + j] = i === j ? Math.sqrt(rest) : rest / L[j * D + j];
      }
      L.fill(0, i * D + i + 1, i * D + right);
    }
    divide(part(L, D, right * D + left), D - right, L, D, left, right);
  }
  return L;
}

/**
 * X [n, D] with L x = row for each row of `rows` [n, D]: forward substitution. `upper`: row i of both is zero before
 * column i.
 */
export function solveLower(L, rows, n, D, { upper = false } = {}) {
  const X = rows.slice();
  for (let left = 0; left < D; left += BLOCK) {
    const right = Math.min(D, left + BLOCK);
    const here = part(X, D, left);
    const options = { sign: -1, upper: upper ? "a" : "" };
    addProduct(here, part(X, D), part(L, D, left * D), upper ? Math.min(n, left) : n, right - left, left, options);
    divide(here, upper ? Math.min(n, right) : n, L, D, left, right);
  }
  return X;
}

/** `x` [n, right − left] ← x B⁻ᵀ, B: the block of L on its diagonal, from `left` to `right`. */
function divide({ values, stride, at }, n, L, D, left, right) {
  const size = right - left;
  const inverse = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    const diagonal = L[(left + i) * D + left + i];
    const row = (left + i) * D + left;
    for (let k = 0; k < i; k++) addScaled(inverse, i * size, inverse, k * size, -L[row + k], k + 1);
    for (let j = 0; j < i; j++) inverse[i * size + j] /= diagonal;
    inverse[i * size + i] = 1 / diagonal;
  }
  const old = new Float64Array(n * size);
  for (let r = 0; r < n; r++) {
    const start = at + r * stride;
    old.set(values.subarray(start, start + size), r * size);
    values.fill(0, start, start + size);
  }
  addProduct(part(values, stride, at), part(old, size), part(inverse, size), n, size, size, { lower: "b" });
}

/** X [n, D] with Lᵀ x = row for each row of `rows` [n, D]: backward substitution. */
export function solveUpper(L, rows, n, D) {
  const X = rows.slice();
  const U = transposed(L, D, D);
  for (let right = D, left; right > 0; right = left) {
    left = Math.max(0, right - BLOCK);
    addProduct(part(X, D, left), part(X, D, right), part(U, D, left * D + right), n, right - left, D - right, { sign: -1 });
    for (let r = 0; r < n; r++) {
      for (let i = right - 1; i >= left; i--) {
        const value = (X[r * D + i] /= L[i * D + i]);
        addScaled(X, r * D + left, L, i * D + left, -value, i - left);
      }
    }
  }
  return X;
}

/** L⁻¹ [D, D], lower triangular. */
export function inverseLower(L, D) {
  const unit = new Float64Array(D * D);
  for (let i = 0; i < D; i++) unit[i * D + i] = 1;
  return transposed(solveLower(L, unit, D, D, { upper: true }), D, D);
}
