"""The built page in a real browser, in a real swarm, from another origin than any peer's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from swarm.demo.local_swarm import LocalSwarm
from swarm.models.picture_parts import open_pictures
from tests.seeing import picture, save_seeing

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
MODEL = ROOT / "models" / "tiny-llama"
PROMPT = "A function definition"
TOKENS = 160
KINDS = ("webrtc-direct", "webtransport", "ws")
NODES = ("carol", "dave", "erin", "frank")
"""Query nodes; each kind of address costs one its life."""

pytestmark = pytest.mark.processes


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, **options)


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chromium() -> str:
    if browser_path() is None and shutil.which("apt-get"):
        run("apt-get", "update")
        run("apt-get", "install", "--yes", "--no-install-recommends", "chromium")
    found = browser_path()
    if found is None:
        pytest.skip("there is no Chromium, and apt-get does not bring it")
    return found


@pytest.fixture(scope="module")
def dist() -> Path:
    """The page as it is now, built."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm to build the page with")
    if not all((WEB / "node_modules" / name).exists() for name in ("playwright-core", "axe-core")):
        installed = run("npm", "ci", "--no-audit", "--no-fund", cwd=WEB)
        if installed.returncode:
            pytest.skip(f"npm cannot install what the page is built with: {installed.stderr[-300:]}")
    built = run("npm", "run", "build", cwd=WEB)
    assert built.returncode == 0, built.stdout + built.stderr
    return WEB / "dist"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(dist: Path) -> Iterator[str]:
    """Where a server that knows nothing but files serves the page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(dist.parent))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{dist.name}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    with LocalSwarm(MODEL) as local:
        local.start_bootstrap("--edge-address-file", str(local.folder / "edges"))
        local.start_server("alice", "0:4")
        local.start_server("bob", "4:8")
        for node in NODES:
            local.start_gateway(node)
        local.wait_until_online("alice", "bob")
        local.wait_until_ready(*NODES)
        yield local


class Browser:
    """A page in a headless browser, driven by web/tests/drive.mjs."""

    def __init__(self, chromium: str) -> None:
        command = ["node", str(WEB / "tests" / "drive.mjs"), chromium]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=WEB, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, action: str, **options: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"do": action, **options}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def wait(self, until: str) -> dict[str, Any]:
        return dict(self("wait", until=until))

    def joined(self) -> None:
        """Until it shows a model whose every block is served, and query nodes."""
        self.wait("document.querySelector('#map .node') && !document.querySelector('#trouble-words').textContent")

    def ask(self, prompt: str, tokens: int) -> None:
        self("settings", open=True)
        self("fill", id="temperature", value="0")
        self("fill", id="max-tokens", value=str(tokens))
        self("settings", open=False)
        self("fill", id="prompt", value=prompt)
        self("press", key="Enter")

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


LONG = "(document.querySelector('#log > :last-child .text')?.textContent.length ?? 0) > 40"
ENDED = "document.querySelector('#log > :last-child .answer:not(.running)')"


@pytest.fixture(scope="module")
def browser(chromium: str, dist: Path) -> Iterator[Browser]:
    opened = Browser(chromium)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def right() -> str:
    """What one process says."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = local.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).lstrip()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where pictures go: $SWARM_SCREENSHOTS, if somebody wants to look at them."""
    return Path(os.environ.get("SWARM_SCREENSHOTS", tmp_path))


def shown(node: str) -> str:
    """That the map has this query node."""
    return f"[...document.querySelectorAll('#map .node .who')].some((who) => who.textContent === '{node}')"


def link(site: str, swarm: LocalSwarm, kind: str) -> str:
    edges = (swarm.folder / "edges").read_text().split()
    return f"{site}#via={kind}" + "".join(f"&peer={edge}" for edge in edges)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_outlives_the_query_node_that_it_came_from(
    kind: str, site: str, swarm: LocalSwarm, browser: Browser, right: str, shots: Path
) -> None:
    names = [name for name in NODES if name in swarm.processes]
    browser("open", url=link(site, swarm, kind))
    browser.joined()
    for name in names:
        browser.wait(shown(name))
    browser.ask(PROMPT, TOKENS)
    whole = browser.wait(ENDED)
    browser("trace")
    browser("picture", path=str(shots / f"{kind}-whole.png"))
    assert whole["trace"] > 0
    assert whole["text"] == right, browser("said")
    assert whole["hops"] == ["alice: blocks 0–3", "bob: blocks 4–7"]
    assert browser("barriers") == []
    browser("click", selector="#again")
    browser.ask(PROMPT, TOKENS)
    used = browser.wait(LONG)["node"]
    browser("picture", path=str(shots / f"{kind}-running.png"))
    swarm.kill(used)
    again = browser.wait(ENDED)
    assert again["text"] == right
    assert not again["failed"]
    assert again["node"] in names and again["node"] != used
    assert any(used in note for note in again["notes"]) and again["node"] in again["notes"][-1]
    browser.ask("More", TOKENS)
    browser.wait(LONG)
    browser("press", key="Escape")
    assert browser.wait(ENDED)["state"].startswith("Stopped after")
    # js-libp2p's WebTransport throws into the void when its session breaks; that is no matter of the page's.
    thrown = [line for line in browser("said") if line.startswith("thrown") and "'includes'" not in line]
    assert not thrown


def test_what_is_missing_is_told_in_words_and_waited_for(
    site: str, swarm: LocalSwarm, browser: Browser, right: str, shots: Path
) -> None:
    browser("open", url=link(site, swarm, "webrtc-direct"), width=390, height=800, dark=True, calm=True)
    browser.joined()
    browser.ask(PROMPT, TOKENS)
    browser.wait(LONG)
    swarm.kill("bob")
    stuck = browser.wait("document.querySelector('#log .state')?.textContent.includes('no server')")
    browser("picture", path=str(shots / "missing.png"))
    assert stuck["running"] and not stuck["sideways"]
    assert browser("barriers") == []
    assert stuck["state"].startswith("Blocks 4–7 have no server; waiting")
    swarm.start_server("bella", "4:8")
    whole = browser.wait(ENDED)
    assert whole["text"] == right
    assert whole["hops"] == ["alice: blocks 0–3", "bella: blocks 4–7"]
    assert whole["sparks"] == 0
    assert any("bella" in note for note in whole["notes"])


@pytest.mark.filterwarnings("default")
def test_a_picture_is_shown_to_a_model_that_sees(site: str, browser: Browser, tmp_path: Path, shots: Path) -> None:
    whole = save_seeing(tmp_path / "seeing")
    path = picture(tmp_path / "picture.png")
    with LocalSwarm(tmp_path / "seeing") as local:
        local.start_bootstrap("--edge-address-file", str(local.folder / "edges"))
        local.start_server("alice", "0:6")
        local.wait_until_online("alice")
        local.start_gateway("carol")
        local.wait_until_ready("carol")
        browser("open", url=link(site, local, "ws"))
        browser.joined()
        browser.wait("!document.getElementById('show-picture').hidden")
        browser("choose", id="picture-file", paths=[str(path), str(tmp_path / "seeing" / "config.json")])
        browser.wait("document.querySelectorAll('#pictures img').length === 1")
        browser.wait("document.querySelector('#complaint').textContent")
        assert browser("barriers") == []
        browser("picture", path=str(shots / "picture-chosen.png"))
        browser.ask("cdef", 12)
        told = browser.wait(ENDED)
        browser("picture", path=str(shots / "picture-told.png"))
        (sent,) = browser("sources", selector="#log .shown img")
        assert browser("sources", selector="#pictures img") == []
    parts = [{"type": "image_url", "image_url": {"url": sent}}]
    (image,) = open_pictures([{"role": "user", "content": parts}])
    content = [{"type": "image", "image": image}, {"type": "text", "text": "cdef"}]
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "seeing")  # type: ignore[no-untyped-call]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **how)
    made = whole.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert told["text"] == processor.tokenizer.decode(made, skip_special_tokens=True).lstrip()
