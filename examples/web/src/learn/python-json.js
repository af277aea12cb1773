// JSON as Python's json module writes it, so that what is written here has the same bytes there: numbers keep their
// text (JavaScript would turn 95.0 into 95), and ", " and ": " stand between the parts.

/** A number as it was written. */
export class Digits {
  constructor(text) {
    this.text = text;
  }
}

/** A value whose numbers are `Digits`. */
export function parse(text) {
  JSON.parse(text); // refuses what is not JSON, before the numbers become something else
  const marked = text.replace(/"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, (part) =>
    part[0] === '"' ? part : `{"\\u0000digits":"${part}"}`,
  );
  return JSON.parse(marked, (_, value) =>
    value !== null && typeof value === "object" && "\0digits" in value ? new Digits(value["\0digits"]) : value,
  );
}

/** The text of a value; plain numbers in it are whole. `separators`: between values, and behind names. */
export function dump(value, [comma, colon] = [", ", ": "]) {
  if (value instanceof Digits) return value.text;
  if (Array.isArray(value)) return `[${value.map((item) => dump(item, [comma, colon])).join(comma)}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const pairs = Object.entries(value).map(([name, item]) => JSON.stringify(name) + colon + dump(item, [comma, colon]));
  return `{${pairs.join(comma)}}`;
}

/** A floating-point number as Python's repr: the same digits, written out between 1e-4 and 1e16. */
export function float(number) {
  const [digits, exponent] = number.toExponential().split("e");
  const power = Number(exponent);
  if (power >= -4 && power < 16) return new Digits(Number.isInteger(number) ? `${number}.0` : String(number));
  return new Digits(`${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`);
}

/** What `Digits` and everything within a value are as JavaScript's numbers. */
export function plain(value) {
  if (value instanceof Digits) return Number(value.text);
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item)]));
}
