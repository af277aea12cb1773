// Protobuf messages as their fields. A field is a tag (number and wire type) and a value.
const VARINT = 0;
const EIGHT = 1;
export const BYTES = 2;
const FOUR = 5;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The fields of a message that lies in `bytes` from `start` to `end`: `{ number, wire, start, at, end }`. */
export function fields(bytes, start = 0, end = bytes.length) {
  const found = [];
  for (let at = start; at < end; ) {
    const field = { start: at };
    const [tag, behind] = readVarint(bytes, at, end);
    field.number = Math.floor(tag / 8);
    field.wire = tag % 8;
    field.at = behind;
    if (field.wire === VARINT) [, field.end] = readVarint(bytes, behind, end);
    else if (field.wire === BYTES) {
      const [size, content] = readVarint(bytes, behind, end);
      field.at = content;
      field.end = content + size;
    } else if (field.wire === EIGHT || field.wire === FOUR) field.end = behind + (field.wire === EIGHT ? 8 : 4);
    else throw noMessage();
    if (field.number === 0 || field.end > end) throw noMessage();
    found.push(field);
    at = field.end;
  }
  return found;
}

/** The whole number that a field holds; exact up to 2⁵³. */
export const numberOf = (bytes, field) => readVarint(bytes, field.at, field.end)[0];

/** The text that a field holds. */
export const textOf = (bytes, field) => decoder.decode(bytes.subarray(field.at, field.end));

/** Bytes of a field with a whole number. */
export const number = (field, value) => join([varint(field * 8 + VARINT), varint(value)]);

/** Bytes of a field with a text, bytes or a message. */
export function text(field, value) {
  const content = typeof value === "string" ? encoder.encode(value) : value;
  return join([head(field, content.length), content]);
}

/** What stands before `size` bytes of a field. */
export const head = (field, size) => join([varint(field * 8 + BYTES), varint(size)]);

/** Pieces one behind the other. */
export function join(pieces) {
  const all = new Uint8Array(sizeOf(pieces));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

export const sizeOf = (pieces) => pieces.reduce((sum, piece) => sum + piece.length, 0);

function varint(value) {
  const bytes = [];
  for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) + 0x80);
  bytes.push(value);
  return Uint8Array.from(bytes);
}

function readVarint(bytes, at, end) {
  let value = 0;
  for (let scale = 1; at < end && scale < 2 ** 70; scale *= 0x80) {
    const byte = bytes[at++];
    value += (byte % 0x80) * scale;
    if (byte < 0x80) return [value, at];
  }
  throw noMessage();
}

const noMessage = () => new Error("the file is no whole ONNX model: copy or export it again");
