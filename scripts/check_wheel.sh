#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and uses it as a new user would.
# Packages come through pip's cache, or from the registry; torch first, since which build fits is the machine's choice.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet build
rm -rf build "$work/dist"
"$work/venv/bin/python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/*.whl)
echo "built $(basename "$wheel"), $(du -k "$wheel" | cut -f1) KB"

"$work/venv/bin/python" - "$wheel" <<'CHECK'
import sys, zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
needed = ["swarm/py.typed", "swarm/net/known_peers.txt", "swarm/wire/swarm.proto", "swarm/gateway/page/index.html"]
missing = [name for name in needed if name not in names]
foreign = [name for name in names if not name.startswith(("swarm/", "swarm_llm-"))]
if missing or foreign:
    sys.exit(f"missing: {missing}; does not belong there: {foreign}")
CHECK

"$work/venv/bin/pip" install --quiet "$(sed -n '/^torch==/p' constraints.txt)"
"$work/venv/bin/pip" install --quiet -c constraints.txt "$wheel"

cp -r models/tiny-llama "$work/tiny-llama"
cp scripts/quickstart.py "$work/quickstart.py"
cd "$work"
for command in swarm-serve swarm-bootstrap swarm-status swarm-chat swarm-gateway; do
    "$work/venv/bin/$command" --help >/dev/null
    echo "$command --help: fine"
done
"$work/venv/bin/python" quickstart.py "$work/venv/bin" "$work/tiny-llama"
