#!/usr/bin/env bash
# Lay out ONNX Runtime as its releases are, from packages: sdk.sh DIR [PYTHON]  →  DIR/include, DIR/lib
#
# For machines that reach PyPI and Debian but not the release page (CI is one). The library is the one inside the
# `onnxruntime` wheel of PYTHON (default: python3), which ships no headers; these are Debian's package
# libonnxruntime-dev, the same MIT-licensed files. A newer library runs programs made with older headers: the C API is a
# table that only grows, and the C++ API is inline code above it.
set -euo pipefail
sdk=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python3}
[ -f "$sdk/include/onnxruntime_cxx_api.h" ] && [ -e "$sdk/lib/libonnxruntime.so" ] && exit

mkdir -p "$sdk/lib" "$sdk/include"
library=$("$python" -c 'import glob, onnxruntime as o; print(*glob.glob(o.__path__[0] + "/capi/libonnxruntime.so.1*"))')
[ -n "$library" ] || { echo "no libonnxruntime.so.1* in the onnxruntime of $python" >&2; exit 2; }
ln -sf "$library" "$sdk/lib/libonnxruntime.so.1" # the name by which programs ask for it
ln -sf libonnxruntime.so.1 "$sdk/lib/libonnxruntime.so"

# Debian has the package from version 13 on. On an older one, read that version's list beside the machine's own lists,
# from the mirror that the machine uses, and only to download this one package: nothing is installed from it.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
options=()
if ! apt-cache show libonnxruntime-dev > "$scratch/found" 2>&1; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | head -n 1)
  mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$scratch/sources.list"
  options=(-o "Dir::Etc::SourceList=$scratch/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" -qq update
fi
(cd "$scratch" && apt-get "${options[@]}" -qq download libonnxruntime-dev)
dpkg-deb --extract "$scratch"/libonnxruntime-dev_*.deb "$scratch/package"
cp "$scratch"/package/usr/include/onnxruntime/*.h "$sdk/include/"
