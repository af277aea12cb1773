// safetensors files: header length (8 bytes), header (JSON), arrays without gaps; little-endian, as all browsers are.
// https://github.com/huggingface/safetensors, "Format".
import { dump } from "./python-json.js";

const TYPES = { F64: Float64Array, F32: Float32Array, I64: BigInt64Array };

/** The file's content, in pieces. `arrays`: name → `{ values, shape }`; `metadata`: strings by name. */
export function encode(arrays, metadata) {
  const header = { __metadata__: metadata };
  const pieces = [];
  let end = 0;
  for (const [name, { values, shape }] of arrays) {
    const kind = Object.keys(TYPES).find((it) => values instanceof TYPES[it]);
    const start = end;
    end += values.byteLength;
    pieces.push(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    header[name] = { dtype: kind, shape, data_offsets: [start, end] };
  }
  const text = new TextEncoder().encode(dump(header, [",", ":"]));
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(0x20);
  padded.set(text);
  const length = new Uint8Array(8);
  new DataView(length.buffer).setUint32(0, padded.length, true);
  return [length, padded, ...pieces];
}

/** `{ arrays, metadata, data }` of a file's content (Uint8Array). */
export function decode(content) {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const count = content.length < 10 ? 0 : view.getUint32(0, true);
  if (count < 2 || content[8] !== 0x7b) throw new Error("it is no safetensors file");
  if (8 + count > content.length) throw new Error(`it ends after ${content.length} bytes: the file is not complete`);
  const header = JSON.parse(new TextDecoder().decode(content.subarray(8, 8 + count)));
  const data = new Uint8Array(content.buffer, content.byteOffset + 8 + count, content.length - 8 - count); // not Node's Buffer
  const { __metadata__: metadata = {}, ...entries } = header;
  const arrays = new Map();
  let end = 0;
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    const type = TYPES[dtype];
    const size = shape.reduce((product, it) => product * it, 1) * (type?.BYTES_PER_ELEMENT ?? NaN);
    if (offsets[0] !== end || offsets[1] - end !== size) throw new Error(`array '${name}' has other bytes than its shape`);
    end = offsets[1];
    if (end > data.length) break;
    arrays.set(name, { shape, values: new type(data.slice(offsets[0], end).buffer) });
  }
  if (end !== data.length) throw new Error("the file is not complete, or not as it was written");
  return { arrays, metadata, data };
}
