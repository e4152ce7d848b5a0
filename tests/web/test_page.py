"""The page in a real browser, from a plain file server, against a swarm of real processes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.local_swarm import LocalSwarm

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "models" / "tiny-llama"
DIST = ROOT / "web" / "dist"
PROMPT = "A function definition"
TOKENS = 60
EDGES = {
    "webrtc-direct": "/ip4/127.0.0.1/udp/0/webrtc-direct",
    "webtransport": "/ip4/127.0.0.1/udp/0/quic-v1/webtransport",
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(not (DIST / "index.html").exists(), reason="the page is not built: make page"),
]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Where the page is: an origin of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(DIST)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def processes() -> Iterator[LocalSwarm]:
    with LocalSwarm(MODEL) as local:
        listen = [word for edge in EDGES.values() for word in ("--edge-maddrs", edge)]
        local.start_bootstrap(*listen, "--edge-address-file", str(local.folder / "edges"))
        local.start_server("alice", "0:4")
        local.start_server("bob", "4:8")
        local.wait_until_online("alice", "bob")
        yield local


@pytest.fixture(scope="module")
def right() -> str:
    """What one process says."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = local.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("kind", EDGES)
def test_a_query_node_killed_in_the_middle_of_an_answer_is_a_hiccup(
    site: str, processes: LocalSwarm, right: str, kind: str, tmp_path: Path
) -> None:
    names = [f"{kind}-one", f"{kind}-two"]
    for name in names:
        processes.start_gateway(name, "--edge-maddrs", EDGES[kind])
    processes.wait_until_ready(*names)
    peer = next(line for line in (processes.folder / "edges").read_text().splitlines() if kind in line)
    seen = []
    for event in visit(f"{site}#peer={quote(peer, safe='')}", tmp_path):
        seen.append(event)
        if event["event"] == "answering" and event["round"] == 1:
            processes.signal(next(name for name in names if f"through {name}" in event["note"]), signal.SIGKILL)
    # js-libp2p's WebTransport throws into the void when its session breaks; that is no matter of the page's.
    seen = [event for event in seen if event["event"] not in ("error", "console")]
    kinds = [event["event"] for event in seen]
    assert kinds == ["joined", "map", "answering", "ended", "answering", "ended"], seen
    assert seen[1]["blocks"] == 8
    assert seen[2]["hops"] == 2
    undisturbed, disturbed = seen[3], seen[5]
    assert (undisturbed["status"], undisturbed["text"], undisturbed["hiccups"]) == ("done", right, [])
    assert (disturbed["status"], disturbed["text"]) == ("done", right)
    assert len(disturbed["hiccups"]) == 1
    for name in names:
        processes.kill(name)


def visit(url: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What the browser tells, as it happens."""
    shots = os.environ.get("SWARM_SCREENSHOTS", "")
    given = {"url": url, "prompt": PROMPT, "tokens": TOKENS, "servers": 2, "rounds": 2, "chromium": CHROMIUM}
    command = ["node", str(ROOT / "web" / "tests" / "browser.mjs"), json.dumps({**given, "screenshots": shots})]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HOME": str(folder)}
    ) as browser:
        assert browser.stdout is not None
        for line in browser.stdout:
            yield json.loads(line)
