// Names that somebody types for a class: cdl_deploy/learn/names.py.

/** Throws for a name that cannot be one, and for a new one that differs from a known one in spelling alone. */
export function checkName(name, known) {
  if (!name.trim() || /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u.test(name)) {
    throw new Error("Give the class a name, of letters, digits or other signs that can be shown");
  }
  const other = known.find((it) => plain(it) === plain(name));
  if (other !== undefined && !known.includes(name)) {
    throw new Error(`“${name}” differs from “${other}” in spelling alone: call it “${other}” to add to that class`);
  }
}

// Upper case first: that is what makes ß and ss the same, as Python's casefold does.
const plain = (name) => name.normalize("NFKC").toUpperCase().toLowerCase().replace(/[ _\-\t]/g, "");
