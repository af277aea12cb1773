// Statistics ↔ one safetensors file: the format of cdl_deploy/closed_form/statistics_file.py.
import { Digits, dump, parse, plain } from "./python-json.js";
import { decode, encode } from "./safetensors.js";
import { sha256 } from "./sha256.js";
import { dimension, images } from "./statistics.js";

const KEY = "cdl.statistics";
const FORMAT_VERSION = 1;
const digests = new WeakMap();

/**
 * Read and check the file of a model whose features have this hash.
 *
 * Returns `{ base, additions, keep, header }`: sums of the base and of every addition that is kept apart.
 */
export function readStatistics(content, features) {
  const { arrays, metadata, data } = decode(content);
  if (!metadata[KEY]) throw new Error("the file holds no statistics of cdl-deploy");
  const header = parse(metadata[KEY]);
  const known = plain(header);
  if (known.format_version > FORMAT_VERSION) throw new Error("these statistics are of a later format: export the page again");
  if (sha256(data) !== known.data_sha256) throw new Error("the statistics do not fit their digest: the file is damaged");
  if (known.model !== features) throw new Error("these statistics belong to another model");
  const parts = known.parts.map((part, place) => readPart(arrays, prefix(place), part, known.dimension));
  return { base: parts[0], additions: parts.slice(1), keep: known.keep, header };
}

/** The file's content (Uint8Array) of what `readStatistics` returned, with other sums. */
export function writeStatistics({ base, additions, keep, header }) {
  const arrays = [base, ...additions].flatMap((sums, place) => arraysOf(sums, prefix(place)));
  const data = encode(arrays, {}).slice(2);
  const about = {
    ...header,
    keep: new Digits(String(keep)),
    parts: [base, ...additions].map(partHeader),
    data_sha256: sha256(...data),
  };
  return joined(encode(arrays, { [KEY]: dump(about) }));
}

/** A hash of the base or an addition: two devices that have the same one can tell. */
export function partDigest(sums) {
  if (!digests.has(sums)) digests.set(sums, sha256(...encode(arraysOf(sums, ""), { [KEY]: dump(partHeader(sums)) })));
  return digests.get(sums);
}

const prefix = (place) => (place ? `additions.${place - 1}` : "base");

const partHeader = ({ classes, noiseImages }) => ({ classes, noise_images: noiseImages, teacher: false });

function arraysOf({ classes, counts, means, spread, scatter, overconfidence }, name) {
  const C = classes.length;
  const D = Math.sqrt(scatter.length);
  const upper = new Float64Array((D * (D + 1)) / 2);
  for (let i = 0, at = 0; i < D; at += D - i, i++) upper.set(scatter.subarray(i * D + i, (i + 1) * D), at);
  return [
    [`${name}.counts`, { values: BigInt64Array.from(counts, BigInt), shape: [C] }],
    [`${name}.means`, { values: means, shape: [C, D] }],
    [`${name}.spread`, { values: spread, shape: [C] }],
    [`${name}.scatter`, { values: upper, shape: [upper.length] }],
    [`${name}.overconfidence`, { values: overconfidence, shape: [2] }],
  ];
}

function readPart(arrays, name, { classes, noise_images: noiseImages, teacher }, D) {
  if (teacher) throw new Error("its sums have a teacher's outputs, which new pictures have not: it cannot be taught here");
  const take = (array, size) => {
    const found = arrays.get(`${name}.${array}`)?.values;
    if (found?.length !== size) throw new Error(`the statistics' array '${name}.${array}' is not of size ${size}`);
    if (found instanceof BigInt64Array) return Array.from(found, Number);
    const values = Float64Array.from(found);
    if (!values.every(Number.isFinite)) throw new Error(`the statistics' array '${name}.${array}' holds no numbers`);
    return values;
  };
  const C = classes.length;
  const packed = take("scatter", (D * (D + 1)) / 2);
  const scatter = new Float64Array(D * D);
  for (let i = 0, at = 0; i < D; i++) for (let j = i; j < D; j++) scatter[i * D + j] = scatter[j * D + i] = packed[at++];
  const overconfidence = arrays.has(`${name}.overconfidence`) ? take("overconfidence", 2) : new Float64Array(2);
  const sums = { classes, counts: take("counts", C), means: take("means", C * D), spread: take("spread", C), scatter };
  if (images(sums) > noiseImages || dimension(sums) !== D) throw new Error(`the statistics of '${name}' do not fit`);
  return { ...sums, noiseImages, overconfidence };
}

function joined(pieces) {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (all.set(piece, at), at + piece.length), 0);
  return all;
}
