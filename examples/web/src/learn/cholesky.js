// Solves with a symmetric positive definite matrix, in float64.
import { addScaled, dot } from "./matrix.js";

/** [D, D]: lower triangular L with L Lᵀ = `matrix`; throws a RangeError where that is not positive definite. */
export function lowerFactor(matrix, D) {
  const L = new Float64Array(D * D);
  for (let i = 0; i < D; i++) {
    for (let j = 0; j < i; j++) {
      L[i * D + j] = (matrix[i * D + j] - dot(L, i * D, L, j * D, j)) / L[j * D + j];
    }
    const left = matrix[i * D + i] - dot(L, i * D, L, i * D, i);
    if (!(left > 0)) throw new RangeError("the matrix is not positive definite");
    L[i * D + i] = Math.sqrt(left);
  }
  return L;
}

/** X [n, D] with L x = row for each row of `rows` [n, D]: forward substitution. */
export function solveLower(L, rows, n, D) {
  const X = rows.slice();
  for (let r = 0; r < n; r++) {
    for (let i = 0; i < D; i++) X[r * D + i] = (X[r * D + i] - dot(L, i * D, X, r * D, i)) / L[i * D + i];
  }
  return X;
}

/** X [n, D] with Lᵀ x = row for each row of `rows` [n, D]: backward substitution. */
export function solveUpper(L, rows, n, D) {
  const X = rows.slice();
  for (let r = 0; r < n; r++) {
    for (let i = D - 1; i >= 0; i--) {
      const value = (X[r * D + i] /= L[i * D + i]);
      addScaled(X, r * D, L, i * D, -value, i);
    }
  }
  return X;
}

/** L⁻¹ [D, D], lower triangular. */
export function inverseLower(L, D) {
  const X = new Float64Array(D * D);
  for (let i = 0; i < D; i++) {
    for (let k = 0; k < i; k++) if (L[i * D + k]) addScaled(X, i * D, X, k * D, -L[i * D + k], k + 1);
    const diagonal = L[i * D + i];
    for (let j = 0; j < i; j++) X[i * D + j] /= diagonal;
    X[i * D + i] = 1 / diagonal;
  }
  return X;
}
