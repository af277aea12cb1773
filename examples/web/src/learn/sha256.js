// SHA-256 (FIPS 180-4). Browsers have one, but not for pages from http://, and never at once: a worker can wait.

const K = new Int32Array(64);
const START = new Int32Array(8);
for (let found = 0, n = 2; found < 64; n++) {
  let prime = true;
  for (let d = 2; d * d <= n && prime; d++) prime = n % d !== 0;
  if (!prime) continue;
  const fraction = (root) => Math.floor((root - Math.floor(root)) * 2 ** 32);
  if (found < 8) START[found] = fraction(Math.sqrt(n));
  K[found++] = fraction(Math.cbrt(n));
}

/** Hex digits of the hash of some pieces (Uint8Array each), one behind the other. */
export function sha256(...pieces) {
  const state = START.slice();
  const words = new Int32Array(64);
  const block = new Uint8Array(64);
  let filled = 0;
  let total = 0;
  for (const piece of pieces) {
    total += piece.length;
    let at = 0;
    if (filled) {
      at = Math.min(64 - filled, piece.length);
      block.set(piece.subarray(0, at), filled);
      filled += at;
      if (filled < 64) continue;
      mix(state, words, block, 0);
      filled = 0;
    }
    for (; at + 64 <= piece.length; at += 64) mix(state, words, piece, at);
    block.set(piece.subarray(at));
    filled = piece.length - at;
  }
  const end = new Uint8Array(filled < 56 ? 64 : 128);
  end.set(block.subarray(0, filled));
  end[filled] = 0x80;
  const view = new DataView(end.buffer);
  view.setUint32(end.length - 8, Math.floor(total / 2 ** 29));
  view.setUint32(end.length - 4, (total * 8) >>> 0);
  for (let at = 0; at < end.length; at += 64) mix(state, words, end, at);
  return Array.from(state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

function mix(state, w, bytes, at) {
  for (let i = 0; i < 16; i++, at += 4) {
    w[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
  }
  let a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
  for (let i = 0; i < 64; i++) {
    if (i >= 16) {
      const x = w[i - 15];
      const y = w[i - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (((w[i - 16] + s0) | 0) + ((w[i - 7] + s1) | 0)) | 0;
    }
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const one = (((((h + s1) | 0) + (g ^ (e & (f ^ g)))) | 0) + ((K[i] + w[i]) | 0)) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const two = (s0 + ((a & b) | (c & (a | b)))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + one) | 0;
    d = c;
    c = b;
    b = a;
    a = (one + two) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}
