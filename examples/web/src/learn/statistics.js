// Sums over images, as cdl_deploy/closed_form/statistics.py keeps them: for C classes and features φ ∈ R^D the counts
// n_c, the means μ_c, the spread Σ ‖φ − μ_c‖² and the scatter S = Σ (φ − μ_c)(φ − μ_c)ᵀ. Never changed once made.
import { addOuter } from "./matrix.js";

/**
 * The sums of one class: `rows` are its images' φ, Float64Array [D] each.
 *
 * Returns `{ classes, counts, means [C, D], spread, scatter [D, D], noiseImages, overconfidence [2] }`, as all here do.
 */
export function gather(name, rows) {
  const n = rows.length;
  const D = rows[0].length;
  const means = new Float64Array(D);
  for (const row of rows) for (let d = 0; d < D; d++) means[d] += row[d];
  for (let d = 0; d < D; d++) means[d] /= n;
  const centred = new Float64Array(n * D);
  const left = new Float64Array(D);
  rows.forEach((row, i) => {
    for (let d = 0; d < D; d++) left[d] += centred[i * D + d] = row[d] - means[d];
  });
  const scatter = new Float64Array(D * D);
  addOuter(scatter, centred, new Array(n).fill(1), D);
  let spread = 0;
  for (const value of centred) spread += value * value;
  for (let d = 0; d < D; d++) spread -= left[d] ** 2 / n;
  addOuter(scatter, left, [-1 / n], D); // what rounding left
  for (let d = 0; d < D; d++) means[d] += left[d] / n;
  return {
    classes: [name],
    counts: [n],
    means,
    spread: Float64Array.of(n > 1 ? Math.max(spread, 0) : 0),
    scatter,
    noiseImages: n,
    overconfidence: new Float64Array(2),
  };
}

export const dimension = (sums) => Math.sqrt(sums.scatter.length); // there may be no class any more

export const images = (sums) => sums.counts.reduce((sum, n) => sum + n, 0);

/** κ: what the temperature that the other sums suggest is multiplied by. */
export const temperatureFactor = ({ overconfidence: [n, logFactor] }) => (n ? Math.exp(logFactor / n) : 1);

/** The sums over the images of both; new classes stand behind the known. */
export function merge(one, other) {
  const D = dimension(one);
  if (dimension(other) !== D) throw new Error(`the features have ${dimension(other)} numbers, expected ${D}`);
  const known = new Set(one.classes);
  const classes = [...one.classes, ...other.classes.filter((name) => !known.has(name))];
  const a = arranged(one, classes);
  const b = arranged(other, classes);
  const scatter = one.scatter.map((value, i) => value + other.scatter[i]);
  const delta = new Float64Array(classes.length * D);
  const means = new Float64Array(classes.length * D);
  const spread = new Float64Array(classes.length);
  const weights = [];
  const counts = classes.map((_, c) => {
    const n = a.counts[c] + b.counts[c];
    const share = b.counts[c] / Math.max(n, 1);
    weights[c] = a.counts[c] * share;
    let square = 0;
    for (let i = c * D; i < (c + 1) * D; i++) {
      const step = b.means[i] - a.means[i];
      means[i] = a.means[i] + step * share;
      if (weights[c]) square += (delta[i] = step) ** 2;
    }
    spread[c] = a.spread[c] + b.spread[c] + weights[c] * square;
    return n;
  });
  addOuter(scatter, delta, weights, D);
  const overconfidence = one.overconfidence.map((value, i) => value + other.overconfidence[i]);
  return { classes, counts, means, spread, scatter, noiseImages: one.noiseImages + other.noiseImages, overconfidence };
}

/** The same sums with the classes in this order; there may be more of them, or fewer. */
export function arranged(sums, classes) {
  const D = dimension(sums);
  const from = classes.map((name) => sums.classes.indexOf(name));
  const means = new Float64Array(classes.length * D);
  from.forEach((c, to) => c >= 0 && means.set(sums.means.subarray(c * D, (c + 1) * D), to * D));
  const counts = from.map((c) => sums.counts[c] ?? 0);
  return { ...sums, classes, counts, means, spread: Float64Array.from(from, (c) => sums.spread[c] ?? 0) };
}

/** Without class `name`: its images stay in the common scatter. */
export function forget(sums, name) {
  return arranged(sums, sums.classes.filter((it) => it !== name));
}

/**
 * The same of an addition to `before`. The scatter between the class's two means is in neither, but in their total: it
 * stays as well, and goes with the addition.
 */
export function forgetAdded(sums, name, before) {
  const [a, b] = [before, sums].map((it) => it.classes.indexOf(name));
  if (b < 0 || a < 0) return forget(sums, name);
  const D = dimension(sums);
  const [n, m] = [before.counts[a], sums.counts[b]];
  const delta = Float64Array.from({ length: D }, (_, d) => sums.means[b * D + d] - before.means[a * D + d]);
  const scatter = sums.scatter.slice();
  addOuter(scatter, delta, [(n * m) / Math.max(n + m, 1)], D);
  return forget({ ...sums, scatter }, name);
}

/** Sums of the base and of all additions, always merged in the same order. */
export const total = ({ base, additions }) => additions.reduce(merge, base);
