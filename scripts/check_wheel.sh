#!/usr/bin/env bash
# Installs a wheel, from dist/ unless another is given, into an empty environment, and uses it as a new user would.
# Packages come through pip's cache, or from the registry; torch first, since which build fits is the machine's choice.
set -euo pipefail
unset PYTHONPATH
wheel=$(realpath "${1:-$(ls "$(dirname "$0")"/../dist/*.whl)}")
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" - "$wheel" "$PWD" <<'CHECK'
import sys, zipfile

wheel, here = zipfile.ZipFile(sys.argv[1]), sys.argv[2].encode()
names = wheel.namelist()
needed = ["swarm/py.typed", "swarm/testing/__init__.py", "swarm/net/initial_peers.txt", "swarm/wire/swarm.proto", "swarm/gateway/page/index.html"]
missing = [name for name in needed if name not in names]
foreign = [name for name in names if not name.startswith(("swarm/", "swarm_llm-"))]
placed = [name for name in names if here in wheel.read(name)]
if missing or foreign or placed:
    sys.exit(f"missing: {missing}; does not belong there: {foreign}; names the folder it was built in: {placed}")
CHECK
echo "$(basename "$wheel"), $(du -k "$wheel" | cut -f1) KB"

"$python" -m venv "$work/venv"
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
