// Whatever goes wrong is one line, and exit code 2.
export function fail(message) {
  console.error(`error: ${message.trim().split("\n")[0]}`);
  process.exit(2);
}

/** What `make` gives; its error says which file it was about. */
export async function naming(path, make) {
  try {
    return await make();
  } catch ({ message }) {
    throw new Error(message.includes(path) ? message : `${path}: ${message}`);
  }
}

process.on("uncaughtException", ({ message }) => fail(message));
