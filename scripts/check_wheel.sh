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

cp -r models/tiny-llama "$work/tiny-llama"
cp scripts/quickstart.py "$work/quickstart.py"
pip() { "$work/venv/bin/python" -m pip install --quiet "$@"; }

# Without extras: it serves and generates, and says what more it needs for the rest.
"$python" -m venv "$work/venv"
pip "$(sed -n '/^torch==/p' constraints.txt)"
pip -c constraints.txt "$wheel"
constraints=$PWD/constraints.txt
cd "$work"
for package in fastapi openai uvicorn libp2p; do
    if "$work/venv/bin/python" -c "import $package" 2>/dev/null; then
        echo "$package is installed without being asked for" >&2
        exit 1
    fi
done
for command in "$work"/venv/bin/swarm-*; do
    "$command" --help >/dev/null
    echo "$(basename "$command") --help: fine"
done
peer=/ip4/127.0.0.1/tcp/1/p2p/12D3KooWSPfVm14AFBKqmwqBxnKhjQyMJDjYc7vKSPj54QZyHkUe
complaint=$("$work/venv/bin/swarm-gateway" tiny-llama -p "$peer" --identity-path "$work/gateway.key" 2>&1 || true)
case $complaint in
    "error: "*'pip install "swarm-llm[gateway]"') echo "$complaint" ;;
    *) echo "swarm-gateway without its extra: $complaint" >&2; exit 1 ;;
esac
"$work/venv/bin/python" quickstart.py "$work/venv/bin" "$work/tiny-llama"
"$work/venv/bin/swarm-demo" --model "$work/tiny-llama" --question "A function definition" --tokens 24 --kill-after 8

# With them: a gateway, and listeners for browsers.
pip -c "$constraints" "$wheel[gateway,edge]"
"$work/venv/bin/python" quickstart.py "$work/venv/bin" "$work/tiny-llama" --gateway
