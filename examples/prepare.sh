#!/usr/bin/env bash
# Install and build what the apps of this folder need: prepare.sh PYTHON. Run by `make examples`, on Debian and Ubuntu.
#
# PYTHON is the interpreter whose onnxruntime the C++ app is linked to. Only what is missing is installed.
set -euo pipefail
python=$(realpath --no-symlinks "$1")
cd "$(dirname "$0")"
built=../build/examples

packages=()
need() { command -v "$1" > /dev/null || packages+=("${@:2}"); } # need PROGRAM PACKAGE…
need g++ g++
need cmake cmake
need pkg-config pkg-config
need npm nodejs npm
need chromium chromium fonts-liberation
[ -e /usr/include/stb/stb_image.h ] || packages+=(libstb-dev)
[ -e /usr/include/libexif/exif-data.h ] || packages+=(libexif-dev)
if [ ${#packages[@]} -gt 0 ]; then
  echo "Installing ${packages[*]}"
  root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  "${root[@]}" apt-get -qq update
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get -qq install --no-install-recommends "${packages[@]}" > /dev/null
fi

if ! node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 18 || (major == 18 && minor >= 17) ? 0 : 1)'; then
  echo "$(command -v node) is Node.js $(node --version), expected v18.17 or newer: install one, or put it first on PATH" >&2
  exit 2
fi
for app in node web; do
  installed=$app/node_modules/.package-lock.json
  if [ ! -e "$installed" ] || [ "$app/package-lock.json" -nt "$installed" ]; then
    echo "Installing the packages of examples/$app"
    (cd "$app" && npm ci --no-progress --loglevel=error && touch node_modules/.package-lock.json)
  fi
done

echo "Building examples/cpp"
cpp/sdk.sh "$built/onnxruntime" "$python"
cmake -S cpp -B "$built/cpp" -DONNXRUNTIME_ROOT="$(realpath "$built/onnxruntime")" > /dev/null
MAKEFLAGS='' cmake --build "$built/cpp" > /dev/null # it is no part of the make that calls this
