"""Build the page of examples/web (Vite) into cdl_deploy/web, from where `cdl export --web` takes it.

python tools/web_page.py           write it; needs Node.js and npm
python tools/web_page.py --check   exit 1 if what is there is not what examples/web gives; a test does this

The built page is committed so that installing the package needs no npm. Its one large part, ONNX Runtime as WebAssembly
(14 MB), is stored compressed, at 2.2 MB.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

PROJECT = Path(__file__).resolve().parent.parent
SOURCE = PROJECT / "examples" / "web"
PACKAGED = PROJECT / "cdl_deploy" / "web"
COMPRESSED = (".wasm", ".txt")


def build(out: Path) -> dict[str, bytes]:
    """Path in the page → content, of a fresh build."""
    installed, wanted = SOURCE / "node_modules/.package-lock.json", SOURCE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        subprocess.run(["npm", "ci", "--silent"], cwd=SOURCE, check=True, stdout=sys.stderr)
    vite = ["npx", "vite", "build", "--emptyOutDir", "--logLevel", "warn", "--outDir", str(out)]
    subprocess.run(vite, cwd=SOURCE, check=True, stdout=sys.stderr)
    page = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    page["THIRD-PARTY-NOTICES.txt"] = notices().encode()
    return page


def notices() -> str:
    """The licences of what the page is built from; npm's onnxruntime-web has none in it, onnxruntime on PyPI has."""
    home = Path(onnxruntime.__file__).parent
    parts = [
        "This page contains ONNX Runtime Web, under this licence:\n",
        (home / "LICENSE").read_text(encoding="utf-8"),
        "\nand, inside it, FlatBuffers, under this licence:\n",
        (SOURCE / "node_modules/flatbuffers/LICENSE").read_text(encoding="utf-8"),
        "\nNotices of what ONNX Runtime itself contains:\n",
        (home / "ThirdPartyNotices.txt").read_text(encoding="utf-8"),
    ]
    return "\n".join(parts)


def packaged() -> dict[str, bytes]:
    """The same of what is committed, expanded."""
    page = {}
    for file in PACKAGED.rglob("*"):
        if file.is_file():
            name = file.relative_to(PACKAGED).as_posix()
            page[name.removesuffix(".xz")] = (
                lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            )
    return page


def write(page: dict[str, bytes]) -> None:
    """Replace what is committed."""
    shutil.rmtree(PACKAGED, ignore_errors=True)
    for name, content in page.items():
        file = PACKAGED / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in COMPRESSED:
            (PACKAGED / f"{name}.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
        else:
            file.write_bytes(content)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the two differ")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        page = build(Path(folder))
    if not check:
        write(page)
        return 0
    there = packaged()
    differing = sorted(name for name in page.keys() | there.keys() if page.get(name) != there.get(name))
    if differing:
        print(f"cdl_deploy/web is out of date ({', '.join(differing)}): run python tools/web_page.py", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
