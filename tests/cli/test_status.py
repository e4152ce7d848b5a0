"""What swarm-status says of a swarm."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from swarm.cli import status
from swarm.cli.report import as_json, as_text, lacking, missing, served_by
from swarm.config import NetworkConfig
from swarm.contract import Contract
from swarm.errors import InvalidInput, ModelNotFound, NobodyFound
from swarm.testing import SimulatedNetwork, run
from swarm.types import ModelInfo, ServerRecord, ServerState, Span

LLAMA = ModelInfo(key="1a" * 32, name="llama", blocks=8, hidden_size=16)
TUNED = ModelInfo(key="2b" * 32, name="llama", blocks=8, hidden_size=16)
OTHER = ModelInfo(key="1a1a1a1a" + "3c" * 28, name="other", blocks=4, hidden_size=16)


def server(peer: str, span: str, state: ServerState = ServerState.ONLINE, **fields: Any) -> ServerRecord:
    parsed = Span.parse(span)
    return ServerRecord(peer, Contract(LLAMA.key, parsed, (bytes(8),) * len(parsed)), state, expires=1e12, **fields)


PUBLIC = "/ip4/8.8.8.8/tcp/1"
CIRCUIT = f"{PUBLIC}/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit/p2p/12D3KooWleaving0"
GPU = server(
    "12D3KooWgpugpugp",
    "0:5",
    addresses=(PUBLIC,),
    decode_ms=1.25,
    prefill_rate=40_000.0,
    free_tokens=120_000,
    name="my gpu",
)
LAPTOP = server("12D3KooWlaptop00", "3:8", ServerState.JOINING)
LEAVING = server("12D3KooWleaving0", "3:8", ServerState.DRAINING, decode_ms=60.0, queue=2, addresses=(CIRCUIT,))


@pytest.mark.parametrize(
    ("records", "counts", "holes"),
    [
        ([], [0] * 8, ["0:8"]),
        ([GPU], [1, 1, 1, 1, 1, 0, 0, 0], ["5:8"]),
        ([GPU, LAPTOP, LEAVING], [1, 1, 1, 1, 1, 0, 0, 0], ["5:8"]),
        ([GPU, server("b", "4:6"), server("c", "7:8")], [1, 1, 1, 1, 2, 1, 0, 1], ["6:7"]),
        ([server("a", "0:8"), GPU], [2, 2, 2, 2, 2, 1, 1, 1], []),
    ],
)
def test_only_servers_that_take_sessions_cover_blocks(
    records: list[ServerRecord], counts: list[int], holes: list[str]
) -> None:
    assert served_by(records, 8) == counts
    assert [str(span) for span in missing(records, 8)] == holes


def computing(record: ServerRecord, dtype: str, quantization: str = "none") -> ServerRecord:
    return replace(record, contract=replace(record.contract, dtype=dtype, quantization=quantization))


def test_blocks_of_servers_that_compute_otherwise_are_told_apart() -> None:
    exact, rough = server("a", "0:5"), computing(server("b", "4:8"), "bfloat16")
    assert missing([exact, rough], 8) == []
    assert lacking([exact, rough], 8) == (
        "every block is served, but not all of them alike: nobody serves 0:4 in bfloat16; nobody serves 5:8 in float32"
    )
    assert "nobody serves 0:4 in bfloat16" in as_json(LLAMA, [exact, rough])["lacking"]
    quantized = computing(server("c", "5:8"), "float32", "int8")
    assert "nobody serves 0:5 in float32, quantized to int8" in str(lacking([exact, quantized], 8))
    assert lacking([exact, rough, server("d", "5:8")], 8) is None
    assert lacking([rough, computing(server("e", "0:4"), "bfloat16")], 8) is None


def test_the_text_names_what_is_missing_and_who_serves_what() -> None:
    lines = as_text(LLAMA, [LEAVING, LAPTOP, GPU]).splitlines()
    why = "nobody serves 5:8 (leaving0 3:8 is leaving, laptop00 3:8 is still loading)"
    assert lines[0] == f"llama  8 blocks  key 1a1a1a1a1a1a  {why}"
    assert lines[2:4] == ["  blocks       0:5  1 server", "  blocks       5:8  missing"]
    gpu, laptop, leaving = lines[6:]
    assert (
        " ".join(gpu.split())
        == "gpugpugp 0:5 online public 1.2 ms/block 40,000 pos/s/block 120,000 tokens 0 float32 my gpu"
    )
    assert " ".join(laptop.split()) == "laptop00 3:8 joining nowhere - - - 0 float32"
    assert "forwarded by …c6iDEp" in leaving


def test_the_json_holds_everything() -> None:
    report = json.loads(json.dumps(as_json(LLAMA, [GPU])))
    assert report["whole"] is False
    assert report["missing"] == [[5, 8]]
    assert report["servers_per_block"] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert report["model"] == {
        "key": LLAMA.key,
        "name": "llama",
        "blocks": 8,
        "hidden_size": 16,
        "context_length": None,
    }
    (entry,) = report["servers"]
    assert (entry["reached"], entry["forwarders"]) == ("public", [])
    assert (entry["peer_id"], entry["first"], entry["last"], entry["decode_ms"]) == (GPU.peer_id, 0, 5, 1.25)


@pytest.mark.parametrize(
    ("models", "wanted", "found"),
    [
        ([LLAMA, OTHER], "llama", LLAMA),
        ([LLAMA, OTHER], "1a" * 32, LLAMA),
        ([LLAMA, OTHER], "1a1a1a1a1a", LLAMA),
        ([LLAMA, OTHER], "1a1a", None),
        ([LLAMA, OTHER], "unknown", None),
        ([], "llama", None),
    ],
)
def test_a_model_is_meant_by_name_or_key(models: list[ModelInfo], wanted: str, found: ModelInfo | None) -> None:
    assert status.choose(models, wanted) is found


def test_an_ambiguous_name_lists_the_keys() -> None:
    with pytest.raises(InvalidInput, match=f"{LLAMA.key}, {TUNED.key}"):
        status.choose([LLAMA, TUNED], "llama")


@pytest.fixture
def unknown_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be looked up on this machine, so the swarm has to know the model."""

    async def resolve(model: str) -> ModelInfo:
        raise ModelNotFound(f"no model {model}")

    monkeypatch.setattr(status, "resolve", resolve)


@pytest.mark.usefixtures("unknown_here")
def test_waiting_ends_when_the_last_block_is_served() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork()
        host, viewer = network.host("s1"), network.host("viewer")
        waiting = asyncio.ensure_future(status.until_whole(network.directory(viewer), LLAMA.key, None, said.append))
        await asyncio.sleep(10.0)
        await network.directory(host).announce(server("s1", "0:5"), LLAMA)
        await asyncio.sleep(10.0)
        assert not waiting.done()
        await network.directory(host).announce(server("s1", "0:8"), LLAMA)
        await asyncio.sleep(2.0)
        info, records = await waiting
        assert info == LLAMA
        assert [str(record.span) for record in records] == ["0:8"]

    said: list[str] = []
    run(scenario())
    assert said == [
        f"no server of '{LLAMA.key}' has announced itself, and it is no model of this machine",
        "llama: nobody serves 5:8",
    ]


def test_waiting_gives_up_and_shows_what_it_saw_last() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork()
        host, viewer = network.host("s1"), network.host("viewer")
        await network.directory(host).announce(server("s1", "0:5"), LLAMA)
        _, records = await status.until_whole(network.directory(viewer), "llama", 30.0)
        assert asyncio.get_running_loop().time() == pytest.approx(30.0, abs=1.0)
        assert [str(span) for span in missing(records, LLAMA.blocks)] == ["5:8"]

    run(scenario())


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--wait"], 2, "--wait and --watch need a MODEL"),
        ([], 1, "swarm-bootstrap"),
        (["--initial-peers", "localhost:31337"], 1, "not the address of a peer"),
    ],
)
def test_wrong_usage_says_what_to_do(
    arguments: list[str], code: int, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWARM_INITIAL_PEERS", raising=False)
    result = CliRunner().invoke(status.main, arguments)
    assert (result.exit_code, complaint in result.output) == (code, True), result.output


def test_waiting_on_an_empty_local_network_goes_on_until_somebody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tries, said = 0, list[str]()
    network = object()

    async def open_(config: NetworkConfig) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise NobodyFound("nobody was found")
        return network

    monkeypatch.setattr(status.net, "open", open_)

    async def main() -> None:
        nonlocal tries
        assert await status.until_found(NetworkConfig(), None, said.append) is network
        assert said == ["nobody was found"]
        tries = -1000
        with pytest.raises(NobodyFound):
            await status.until_found(NetworkConfig(), 0.0)

    run(main())


def test_who_waited_for_nobody_ends_as_who_waited_for_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_(config: NetworkConfig) -> Any:
        raise NobodyFound("nobody was found")

    monkeypatch.setattr(status.net, "open", open_)
    waited = CliRunner().invoke(status.main, ["llama", "--wait", "--timeout", "0", "--lan"])
    assert waited.exit_code == 3, waited.output
    assert "nobody was found" in waited.stderr
    assert CliRunner().invoke(status.main, ["llama", "--lan"]).exit_code == 1
