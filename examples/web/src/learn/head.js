// Sums → the head, and the distance of an image to the nearest class: cdl_deploy/closed_form/{head_rule,slda,ncm,
// shrinkage,mahalanobis,model_world}.py, which have the formulas and say why.
import { inverseLower, lowerFactor, solveLower, solveUpper } from "./cholesky.js";
import { dot, timesTransposed, trace, transposed } from "./matrix.js";
import { normals } from "./normals.js";
import { choosePenalty, regression, solveRidge } from "./ridge.js";
import { arranged, dimension, images, temperatureFactor } from "./statistics.js";
import { fitTemperature } from "./temperature.js";

const FRESH = 2000; // images that are drawn to find temperature and threshold
const PRIOR = 5;
const DIRECT = 4;
const PERCENT = 95;
const FACTOR_BITS = 7; // of the distance in a file, as cdl_deploy/closed_form/mahalanobis.py rounds it
const MEAN_BITS = 6;

/**
 * What `rule` makes of sums. Returns `{ weight [C, D], bias [C], distance, threshold }`: the head as a file holds it, in
 * float32, and from which distance on an image is of no class.
 */
export function solveHead(sums, rule) {
  const classes = byContent(sums);
  const ordered = arranged(sums, classes);
  const noise = noiseOf(ordered, rule.shrinkage);
  const solved = layerOf(ordered, rule, null, noise);
  const world = worldOf(ordered, noise);
  const judge = noiseOf(world.sums, rule.shrinkage);
  const factor = temperatureFactor(sums);
  let temperature = 1;
  if (classes.length > 1) {
    const { layer } = layerOf(world.sums, rule, solved.chosen, judge);
    temperature = fitTemperature(scoresOf(layer, world), world.labels, classes.length) * factor;
  }
  return {
    ...exported(solved.layer, temperature, classes.length > 1 ? factor : 1, sums.classes, classes),
    distance: exportedDistance(sums, noise),
    threshold: rounded(percentile(distancesIn(world, judge), PERCENT)),
  };
}

/** Class names in the order of their means, number by number. */
function byContent({ classes, means }) {
  const D = means.length / classes.length;
  const before = (a, b) => {
    for (let d = 0; d < D; d++) {
      const difference = means[a * D + d] - means[b * D + d];
      if (difference) return difference;
    }
    return a - b;
  };
  return [...classes.keys()].sort(before).map((c) => classes[c]);
}

/** ρ and the factor L of the shrunk covariance Σ_ρ. */
function noiseOf(sums, shrinkage) {
  const D = dimension(sums);
  const covariance = times(sums.scatter, 1 / Math.max(sums.noiseImages, 1));
  const mean = trace(covariance, D) / D;
  if (!(mean > 0)) {
    const spread = trace(regression(sums, true).gram, D) / D / Math.max(images(sums), 1);
    const L = new Float64Array(D * D);
    for (let i = 0; i < D; i++) L[i * D + i] = Math.sqrt(spread || 1);
    return { rho: 1, L, D };
  }
  const rho = shrinkage ?? oas(covariance, mean, sums.noiseImages, D);
  for (let i = 0; i < covariance.length; i++) covariance[i] *= 1 - rho;
  for (let i = 0; i < D; i++) covariance[i * D + i] += rho * mean;
  try {
    return { rho, L: lowerFactor(covariance, D), D };
  } catch {
    throw new Error("the pictures are too few or too much alike for this head: take some more, from other sides");
  }
}

function oas(covariance, mean, count, D) {
  let squares = 0;
  for (const value of covariance) squares += value * value;
  squares /= covariance.length;
  const below = (count + 1) * (squares - (mean * mean) / D);
  return below <= 0 ? 1 : Math.min((squares + mean * mean) / below, 1);
}

/** The layer `{ weight, bias }` and its ρ or λ: `chosen`, else the rule's, else chosen from the sums. */
function layerOf(sums, rule, chosen, noise) {
  const { D } = noise;
  const C = sums.classes.length;
  if (rule.kind === "ncm") {
    const weight = sums.means.slice();
    for (let c = 0; c < C; c++) {
      const length = Math.sqrt(dot(weight, c * D, weight, c * D, D)) || 1;
      for (let i = c * D; i < (c + 1) * D; i++) weight[i] /= length;
    }
    return { layer: { weight, bias: new Float64Array(C) }, chosen: null };
  }
  if (rule.kind === "ridge") {
    const problem = regression(sums, rule.intercept);
    const penalty = chosen ?? rule.penalty ?? choosePenalty(problem);
    return { layer: solveRidge(problem, penalty), chosen: penalty };
  }
  const { rho, L } = chosen === null || chosen === noise.rho ? noise : noiseOf(sums, chosen);
  const weight = solveUpper(L, solveLower(L, sums.means, C, D), C, D);
  const bias = Float64Array.from(sums.counts, (n, c) => {
    const share = rule.priors === "observed" ? n / images(sums) : 1 / C;
    return -0.5 * dot(weight, c * D, sums.means, c * D, D) + Math.log(share);
  });
  return { layer: { weight, bias }, chosen: rho };
}

/**
 * Sums as they could have come out, and fresh images, which judge temperature and threshold. Image r, of class c =
 * labels[r], is φ = wide[c] · factor · standard[r] + centres[c]: it is not made, as what is asked of it costs less so.
 */
function worldOf(sums, { L, D }) {
  const C = sums.classes.length;
  const wide = relativeVariance(sums).map(Math.sqrt);
  const freedom = Math.max(sums.noiseImages - C, 1);
  const factor = times(L, Math.sqrt(Math.max(sums.noiseImages / freedom, 1)));
  const means = timesTransposed(normals(11, C * D), factor, C, D, D, { lower: "b" });
  for (let i = 0; i < means.length; i++) {
    const c = Math.floor(i / D);
    means[i] = sums.means[i] + (means[i] * wide[c]) / Math.sqrt(sums.counts[c]);
  }
  const each = Math.ceil(FRESH / C);
  const labels = Array.from({ length: C * each }, (_, i) => Math.floor(i / each));
  const standard = normals(14, labels.length * D);
  const scatter = scatterOf(factor, freedom, D);
  return { sums: { ...sums, means, scatter }, wide, factor, centres: sums.means, labels, standard };
}

/** factor · W · factorᵀ with W ~ Wishart(freedom, I). */
function scatterOf(factor, freedom, D) {
  const direct = freedom <= DIRECT * D;
  if (direct && freedom < D) {
    const drawn = transposed(normals(12, D * freedom), D, freedom);
    const root = transposed(timesTransposed(drawn, factor, freedom, D, D, { lower: "b" }), freedom, D);
    return timesTransposed(root, root, D, D, freedom, { half: true });
  }
  const standard = direct ? gathered(freedom, D) : bartlett(freedom, D);
  const root = timesTransposed(factor, transposed(standard, D, D), D, D, D, { lower: "a", upper: "b" });
  return timesTransposed(root, root, D, D, D, { lower: "ab", half: true });
}

/** Lower triangular A with A Aᵀ = W, where W is summed from as many draws. */
function gathered(freedom, D) {
  const drawn = normals(12, D * freedom);
  return lowerFactor(timesTransposed(drawn, drawn, D, D, freedom, { half: true }), D);
}

/** The same where W is drawn as such. */
function bartlett(freedom, D) {
  const root = Float64Array.from(normals(12, D * D));
  const diagonal = normals(13, D);
  for (let i = 0; i < D; i++) {
    root.fill(0, i * D + i, (i + 1) * D);
    root[i * D + i] = Math.sqrt(freedom - i - 0.5) + diagonal[i] * Math.sqrt(0.5);
  }
  return root;
}

function relativeVariance(sums) {
  const C = sums.classes.length;
  const mean = sums.spread.reduce((sum, value) => sum + value, 0) / Math.max(images(sums) - C, 1);
  if (!(mean > 0)) return new Float64Array(C).fill(1);
  return sums.spread.map((value, c) => (value / mean + PRIOR) / (sums.counts[c] - 1 + PRIOR));
}

/** The scores [n, C] of the world's fresh images. */
function scoresOf({ weight, bias }, { factor, wide, centres, labels, standard }) {
  const C = bias.length;
  const D = weight.length / C;
  const standardised = timesTransposed(weight, transposed(factor, D, D), C, D, D, { upper: "b" });
  const scores = timesTransposed(standard, standardised, labels.length, C, D);
  const level = timesTransposed(centres, weight, C, C, D); // [class of the image, class]
  labels.forEach((own, r) => {
    for (let c = 0; c < C; c++) scores[r * C + c] = wide[own] * scores[r * C + c] + level[own * C + c] + bias[c];
  });
  return scores;
}

/** How far the world's fresh images are from the nearest of its means, by the factor L of its covariance: [n]. */
function distancesIn({ sums, factor, wide, centres, labels, standard }, { L, D }) {
  const C = sums.classes.length;
  const { centre, offset } = centred(sums.means, C, D);
  const means = solveLower(L, offset, C, D);
  const places = solveLower(L, centres.map((value, i) => value - centre[i % D]), C, D);
  const across = solveLower(L, transposed(factor, D, D), D, D, { upper: true }); // (L⁻¹ factor)ᵀ
  const z = timesTransposed(standard, transposed(across, D, D), labels.length, D, D, { lower: "b" });
  labels.forEach((own, r) => {
    for (let d = 0; d < D; d++) z[r * D + d] = wide[own] * z[r * D + d] + places[own * D + d];
  });
  const products = timesTransposed(z, means, labels.length, C, D);
  const squares = squaresOf(means, C, D);
  return Float64Array.from(labels, (_, r) => nearest(z, r, squares, (c) => products[r * C + c], D));
}

/** The layer divided by its temperature, free of what all classes share, rounded where training rounds it. */
function exported({ weight, bias }, temperature, factor, classes, ordered) {
  const C = classes.length;
  const D = weight.length / C;
  const shared = new Float64Array(D);
  weight.forEach((value, i) => (shared[i % D] += value / C));
  const level = bias.reduce((sum, value) => sum + value / C, 0);
  const round = (value) => Math.fround(Math.fround((value / temperature) * factor) / Math.fround(factor));
  const found = { weight: new Float32Array(C * D), bias: new Float32Array(C) };
  classes.forEach((name, to) => {
    const from = ordered.indexOf(name);
    found.bias[to] = round(bias[from] - level);
    for (let d = 0; d < D; d++) found.weight[to * D + d] = round(weight[from * D + d] - shared[d]);
  });
  return found;
}

/** `{ centre [D], inverse [D, D], means [C, D], squares [C] }`, where `inverse` is Fᵀ, lower triangular, F Fᵀ = Σ_ρ⁻¹. */
function exportedDistance(sums, { L, D }) {
  const C = sums.classes.length;
  const { centre, offset } = centred(sums.means, C, D);
  const inverse = inverseLower(L, D);
  roundColumns(inverse, steps(L, offset, C, D));
  const means = timesTransposed(offset, inverse, C, D, D, { lower: "b" });
  for (let i = 0; i < means.length; i++) means[i] = Math.round(means[i] * 2 ** MEAN_BITS) / 2 ** MEAN_BITS;
  return { centre, inverse, means, squares: squaresOf(means, C, D), D };
}

/** The mean of the class means, and how they differ from it. */
function centred(means, C, D) {
  const centre = new Float64Array(D);
  means.forEach((value, i) => (centre[i % D] += value / C));
  return { centre, offset: means.map((value, i) => value - centre[i % D]) };
}

const squaresOf = (rows, n, D) => Float64Array.from({ length: n }, (_, r) => dot(rows, r * D, rows, r * D, D));

/** Of each feature, the power of two of which its numbers in F are multiples: 2⁻⁷ over its spread, or less. */
function steps(L, offset, C, D) {
  return Float64Array.from({ length: D }, (_, i) => {
    let variance = dot(L, i * D, L, i * D, i + 1);
    for (let c = 0; c < C; c++) variance += offset[c * D + i] ** 2 / C;
    return 2 ** (Math.floor(-Math.log2(variance) / 2) - FACTOR_BITS);
  });
}

function roundColumns(matrix, steps) {
  const D = steps.length;
  for (let i = 0; i < D; i++) {
    for (let j = 0; j <= i; j++) matrix[i * D + j] = Math.round(matrix[i * D + j] / steps[j]) * steps[j];
  }
}

/** The distance of an image φ [D] to the nearest class. */
export function distanceTo({ centre, inverse, means, squares, D }, features) {
  const offset = features.map((value, d) => value - centre[d]);
  const z = offset.map((_, i) => dot(offset, 0, inverse, i * D, i + 1));
  return nearest(z, 0, squares, (c) => dot(z, 0, means, c * D, D), D);
}

/** The distance of row r of z to the nearest mean; `squares`: of the means' lengths, `product(c)`: of the row with mean c. */
function nearest(z, r, squares, product, D) {
  const least = squares.reduce((least, square, c) => Math.min(least, square - 2 * product(c)), Infinity);
  return Math.sqrt(Math.max(dot(z, r * D, z, r * D, D) + least, 0));
}

function percentile(values, percent) {
  const sorted = Float64Array.from(values).sort();
  const place = ((sorted.length - 1) * percent) / 100;
  const below = Math.floor(place);
  return sorted[below] + (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]) * (place - below);
}

/** Up to four digits: the last ones depend on how sums are rounded. */
function rounded(threshold) {
  if (!(threshold > 0)) return 0;
  const unit = 10 ** (Math.floor(Math.log10(threshold)) - 3);
  return Number((Math.ceil(threshold / unit) * unit).toPrecision(4));
}

function times(values, factor) {
  const out = new Float64Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = factor * values[i];
  return out;
}
