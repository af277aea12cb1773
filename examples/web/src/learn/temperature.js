// One temperature T that makes softmax(scores / T) as sure as it is right: cdl_deploy/closed_form/temperature.py.

const COLDEST = 1e-4;
const HOTTEST = 1e4;
const STEPS = 60;
const CLOSE = 1e-8;

/** T for `scores` [n, C] of images whose classes are `labels` [n]; 1 where all scores of an image are equal. */
export function fitTemperature(scores, labels, C) {
  const n = labels.length;
  let spread = 0;
  const centred = Float64Array.from(scores);
  for (let r = 0; r < n; r++) {
    const row = centred.subarray(r * C, (r + 1) * C);
    let mean = 0;
    let best = -Infinity;
    for (const value of row) {
      mean += value / C;
      best = Math.max(best, value);
    }
    let variance = 0;
    for (const value of row) variance += (value - mean) ** 2;
    spread += Math.sqrt(variance / C) / n;
    for (let c = 0; c < C; c++) row[c] -= best;
  }
  if (!(spread > 0)) return 1;
  let own = 0;
  let all = 0;
  for (let i = 0; i < centred.length; i++) all += centred[i] /= spread;
  for (let r = 0; r < n; r++) own += centred[r * C + labels[r]];
  const target = (1 - 1 / n) * (own / n) + all / (n * n * C);
  let low = 1 / HOTTEST;
  let high = 1 / COLDEST;
  let inverse = 1;
  for (let step = 0; step < STEPS; step++) {
    const [slope, bend] = slopeAt(centred, inverse, n, C, target);
    if (slope < 0) low = inverse;
    else high = inverse;
    const following = bend > 0 ? inverse - slope / bend : high;
    if (bend > 0 && Math.abs(following - inverse) <= CLOSE * inverse) {
      inverse = following;
      break;
    }
    inverse = low < following && following < high ? following : Math.sqrt(low * high);
  }
  return spread / inverse;
}

/** First and second derivative of the mean negative log-likelihood. */
function slopeAt(centred, inverse, n, C, target) {
  let first = 0;
  let bend = 0;
  for (let r = 0; r < n; r++) {
    let sum = 0;
    let mean = 0;
    let square = 0;
    for (let i = r * C; i < (r + 1) * C; i++) {
      const weight = Math.exp(centred[i] * inverse);
      const part = weight * centred[i];
      sum += weight;
      mean += part;
      square += part * centred[i];
    }
    mean /= sum;
    first += mean;
    bend += square / sum - mean * mean;
  }
  return [first / n - target, bend / n];
}
