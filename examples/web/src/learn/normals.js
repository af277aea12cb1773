// The random numbers of cdl_deploy/closed_form/stable_random.py, to the bit: SplitMix64, of which twelve 16-bit parts are
// added up. 64-bit words are two halves, because BigInt takes thirty times as long.

const kept = new Map();
const KEPT = 1 << 22; // numbers, of a seed: 16 MB

/**
 * `count` numbers with mean 0 and variance 1, the first ones that this seed (below 2⁵³) gives: Float32Array, which holds
 * them exactly.
 */
export function normals(seed, count) {
  const known = kept.get(seed) ?? new Float32Array(0);
  if (known.length >= count) return known.subarray(0, count);
  const values = new Float32Array(count);
  values.set(known);
  draw(seed, values, known.length);
  if (seed < 100 && count <= KEPT) kept.set(seed, values); // the world's: the same in every solve
  return values;
}

/** Fill `values` from place `first` on. */
function draw(seed, values, first) {
  const [skippedHigh, skippedLow] = times(0, 3 * first, 0x9e3779b9, 0x7f4a7c15);
  let counterLow = (seed >>> 0) + (skippedLow >>> 0);
  let counterHigh = (Math.floor(seed / 2 ** 32) + skippedHigh + (counterLow > 0xffffffff ? 1 : 0)) >>> 0;
  counterLow >>>= 0;
  for (let i = first; i < values.length; i++) {
    let total = 0;
    for (let word = 0; word < 3; word++) {
      const sum = counterLow + 0x7f4a7c15; // GAMMA = 0x9E3779B97F4A7C15
      counterHigh = (counterHigh + 0x9e3779b9 + (sum > 0xffffffff ? 1 : 0)) >>> 0;
      counterLow = sum >>> 0;
      let h = counterHigh;
      let l = counterLow;
      [h, l] = [h ^ (h >>> 30), l ^ ((l >>> 30) | (h << 2))];
      [h, l] = times(h, l, 0xbf58476d, 0x1ce4e5b9);
      [h, l] = [h ^ (h >>> 27), l ^ ((l >>> 27) | (h << 5))];
      [h, l] = times(h, l, 0x94d049bb, 0x133111eb);
      [h, l] = [h ^ (h >>> 31), l ^ ((l >>> 31) | (h << 1))];
      total += (h >>> 16) + (h & 0xffff) + (l >>> 16) + (l & 0xffff);
    }
    values[i] = (2 * total - 12 * 65535) / 131072;
  }
}

/** The lower 64 bits of a product, as two halves. */
function times(h, l, factorHigh, factorLow) {
  const l0 = l & 0xffff;
  const l1 = l >>> 16;
  const f0 = factorLow & 0xffff;
  const f1 = factorLow >>> 16;
  const low = l0 * f0;
  const middle = l1 * f0 + (low >>> 16);
  const other = l0 * f1 + (middle & 0xffff);
  const carry = l1 * f1 + Math.floor(middle / 0x10000) + Math.floor(other / 0x10000);
  return [
    (carry + Math.imul(h, factorLow) + Math.imul(l, factorHigh)) | 0,
    ((other << 16) | (low & 0xffff)) | 0,
  ];
}
