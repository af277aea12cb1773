// An ONNX file with a few parts replaced: everything else keeps its bytes, and its place. What cdl_deploy/learn/
// onnx_edit.py does, in the same order. Field numbers: onnx.proto, https://github.com/onnx/onnx.
import { BYTES, fields, head, join, number, numberOf, sizeOf, text, textOf } from "./protobuf.js";

const GRAPH = 7;
const METADATA = 14;
const NODE = 1;
const INITIALIZER = 5;
const OUTPUT = 12;
const VALUE_INFO = 13;
const FLOAT = 1;
const INT64 = 7;
const STRING = 8;

/** The metadata of a model file, name → text; its graph is passed over. */
export function metadataOf(bytes) {
  const found = new Map();
  for (const field of fields(bytes)) {
    if (field.number !== METADATA) continue;
    const pair = texts(bytes, field.at, field.end);
    found.set(pair.get(1) ?? "", pair.get(2) ?? "");
  }
  return found;
}

/** What is in a model file: nodes, and where its constants lie. */
export class OnnxFile {
  constructor(bytes) {
    this.bytes = bytes;
    this.top = fields(bytes);
    const graphs = this.top.filter((it) => it.number === GRAPH && it.wire === BYTES);
    if (graphs.length !== 1) throw new Error("the file is no ONNX model: it has no graph");
    this.graph = fields(bytes, graphs[0].at, graphs[0].end);
    this.nodes = this.graph.filter((it) => it.number === NODE).map((it) => readNode(bytes, it));
    this.constants = new Map(this.graph.filter((it) => it.number === INITIALIZER).map((it) => readConstant(bytes, it)));
  }

  /** The node that has this output. */
  producer(name) {
    const found = this.nodes.find((node) => node.outputs.includes(name));
    if (!found) throw new Error(`no operator of the model's graph has output '${name}'; export it again`);
    return found;
  }

  /** The nodes that read it. */
  consumers(name) {
    return this.nodes.filter((node) => node.inputs.includes(name) || node.within.has(name));
  }

  /** All values that depend on these. */
  behind(names) {
    const found = new Set(names);
    for (const node of this.nodes) {
      if (node.inputs.some((it) => found.has(it)) || [...node.within].some((it) => found.has(it))) {
        node.outputs.forEach((it) => found.add(it));
      }
    }
    return found;
  }

  /** Sizes that are declared of values, name → list; null for one that is free. */
  declared() {
    const places = this.graph.filter((it) => (it.number === OUTPUT || it.number === VALUE_INFO) && it.wire === BYTES);
    return new Map(places.map((it) => declaredSizes(this.bytes, it)));
  }

  /** The new file in pieces. `edits`: constants, added, shapes (name → value), removed (set), renamed, nodes. */
  edited(edits, metadata) {
    const graph = this.editedGraph(edits);
    const pieces = [];
    let first = true;
    for (const it of this.top) {
      if (it.number === GRAPH) pieces.push(head(GRAPH, sizeOf(graph)), ...graph);
      else if (it.number === METADATA) {
        if (first) {
          for (const key of [...metadata.keys()].sort()) {
            pieces.push(text(METADATA, join([text(1, key), text(2, metadata.get(key))])));
          }
        }
        first = false;
      } else pieces.push(this.bytes.subarray(it.start, it.end));
    }
    return pieces;
  }

  editedGraph({ constants, added, shapes, removed, renamed, nodes }) {
    const nodeAt = new Map(this.nodes.map((node) => [node.place, node]));
    const constantAt = new Map([...this.constants].map(([name, { place }]) => [place, name]));
    const last = (places) => Math.max(0, ...[...places].map((it) => it.start));
    const lastNode = last(nodeAt.keys());
    const lastConstant = last(constantAt.keys());
    const pieces = [];
    for (const it of this.graph) {
      let piece = this.bytes.subarray(it.start, it.end);
      if (nodeAt.has(it)) {
        const { outputs } = nodeAt.get(it);
        if (outputs.some((name) => removed.has(name))) piece = null;
        else if (outputs.some((name) => renamed.has(name))) piece = text(NODE, renamedOutputs(this.bytes, it, renamed));
      } else if (constantAt.has(it)) {
        const name = constantAt.get(it);
        if (removed.has(name)) piece = null;
        else if (constants.has(name)) {
          piece = text(INITIALIZER, join([tensor(name, constants.get(name)), afterValues(this.bytes, it)]));
        }
      } else if ((it.number === OUTPUT || it.number === VALUE_INFO) && it.wire === BYTES) {
        const shape = shapes.get(texts(this.bytes, it.at, it.end).get(1) ?? "");
        if (shape) piece = text(it.number, resized(this.bytes, it.at, it.end, [2, 1, 2], shape));
      }
      if (piece) pieces.push(piece);
      if (it.start === lastNode) nodes.forEach((content) => pieces.push(text(NODE, content)));
      if (it.start === lastConstant) added.forEach((value, name) => pieces.push(text(INITIALIZER, tensor(name, value))));
    }
    return pieces;
  }
}

/** A TensorProto of `{ shape, values }`, values being a Float32Array, a BigInt64Array or a list of texts. */
function tensor(name, { shape, values }) {
  const sizes = shape.map((size) => number(1, size));
  if (Array.isArray(values)) {
    return join([...sizes, number(2, STRING), ...values.map((item) => text(6, item)), text(8, name)]);
  }
  const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return join([...sizes, number(2, values instanceof Float32Array ? FLOAT : INT64), text(8, name), text(9, raw)]);
}

/** A NodeProto with one output, named as that; `flags` are whole numbers by name. */
export function node(operator, inputs, output, flags = {}) {
  const attributes = Object.keys(flags)
    .sort()
    .map((name) => text(5, join([text(1, name), number(3, flags[name]), number(20, 2)])));
  const read = inputs.map((name) => text(1, name));
  return join([...read, text(2, output), text(3, output), text(4, operator), ...attributes]);
}

function readNode(bytes, place) {
  const found = { place, operator: "", inputs: [], outputs: [], flags: {}, within: new Set() };
  for (const it of fields(bytes, place.at, place.end)) {
    if (it.number === 1) found.inputs.push(textOf(bytes, it));
    else if (it.number === 2) found.outputs.push(textOf(bytes, it));
    else if (it.number === 4) found.operator = textOf(bytes, it);
    else if (it.number === 5) readAttribute(bytes, it, found);
  }
  return found;
}

function readAttribute(bytes, place, found) {
  let name = "";
  for (const part of fields(bytes, place.at, place.end)) {
    if (part.number === 1) name = textOf(bytes, part);
    else if (part.number === 3 && part.wire !== BYTES) found.flags[name] = numberOf(bytes, part);
    else if ((part.number === 6 || part.number === 11) && part.wire === BYTES) {
      for (const it of fields(bytes, part.at, part.end)) {
        if (it.number !== NODE || it.wire !== BYTES) continue;
        const inner = readNode(bytes, it);
        [...inner.inputs, ...inner.within].forEach((value) => found.within.add(value));
      }
    }
  }
}

function readConstant(bytes, place) {
  let name = "";
  const shape = [];
  for (const it of fields(bytes, place.at, place.end)) {
    if (it.number === 1 && it.wire !== BYTES) shape.push(numberOf(bytes, it));
    else if (it.number === 8) name = textOf(bytes, it);
  }
  return [name, { place, shape }];
}

/** What a tensor says beside name, sizes and values. */
function afterValues(bytes, place) {
  const rest = fields(bytes, place.at, place.end).filter((it) => it.number > 9);
  return join(rest.map((it) => bytes.subarray(it.start, it.end)));
}

function renamedOutputs(bytes, place, names) {
  return join(
    fields(bytes, place.at, place.end).map((it) => {
      const name = it.number === 2 ? textOf(bytes, it) : "";
      return names.has(name) ? text(2, names.get(name)) : bytes.subarray(it.start, it.end);
    }),
  );
}

function texts(bytes, start, end) {
  const found = fields(bytes, start, end).filter((it) => it.wire === BYTES);
  return new Map(found.map((it) => [it.number, textOf(bytes, it)]));
}

/** A ValueInfoProto with other sizes: they are dim_value (1) of dim (1) within the messages of `path`. */
function resized(bytes, start, end, path, shape) {
  let place = 0;
  return join(
    fields(bytes, start, end).map((it) => {
      if (path.length && it.number === path[0]) {
        return text(it.number, resized(bytes, it.at, it.end, path.slice(1), shape));
      }
      if (!path.length && it.number === 1) {
        const size = shape[place++] ?? null;
        if (size !== null) return text(1, number(1, size));
      }
      return bytes.subarray(it.start, it.end);
    }),
  );
}

function declaredSizes(bytes, place) {
  const name = texts(bytes, place.at, place.end).get(1) ?? "";
  let { at, end } = place;
  for (const wanted of [2, 1, 2]) {
    const inner = fields(bytes, at, end).find((it) => it.number === wanted);
    if (!inner) return [name, []];
    ({ at, end } = inner);
  }
  const sizes = fields(bytes, at, end).filter((it) => it.number === 1);
  return [
    name,
    sizes.map((it) => {
      const size = fields(bytes, it.at, it.end).find((part) => part.number === 1 && part.wire !== BYTES);
      return size ? numberOf(bytes, size) : null;
    }),
  ];
}
