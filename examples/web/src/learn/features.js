// From the output `features` to φ, which is summed and which the head is applied to: unit length, random projection.
import { addScaled } from "./matrix.js";
import { normals } from "./normals.js";

const SHORTEST = 1e-12;

/** `map` is the statistics' record of it: `{ normalise, projection: { features, seed } | null }`. */
export function featureMap({ normalise, projection }) {
  let matrix;
  return (joined) => {
    const values = Float64Array.from(joined);
    if (!values.every(Number.isFinite)) throw new Error("the model's features of this picture are no numbers");
    if (normalise) {
      const length = Math.max(Math.sqrt(values.reduce((sum, value) => sum + value * value, 0)), SHORTEST);
      values.forEach((value, d) => (values[d] = value / length));
    }
    if (!projection) return values;
    const M = projection.features;
    matrix ??= normals(projection.seed, values.length * M);
    const projected = new Float64Array(M);
    values.forEach((value, d) => addScaled(projected, 0, matrix, d * M, value, M));
    return projected.map((value) => Math.max(value, 0));
  };
}
