"""What fits by each scheme."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swarm.cli.fit_table import table
from swarm.config import ServerConfig
from swarm.errors import InvalidInput
from swarm.models.linear import rate as rates
from swarm.server.fit import Cost, fit, longest, roomier
from swarm.server.hosting import Hosting
from swarm.server.options import ServeOptions
from swarm.server.sizing import Allowance, Sizes
from swarm.types import Span

MODEL = str(Path(__file__).parents[2] / "models" / "tiny-llama")
MIB = 1024**2
WIDE = Sizes(weights=(300, 100, 100, 300), cache=(1, 1, 1, 1))
NARROW = Sizes(weights=(90, 30, 30, 90), cache=(2, 2, 2, 2))
LITTLE = Allowance(memory=320, cache_bytes=0, cache_tokens=10)


def test_the_longest_run_of_blocks_with_their_cache_and_disk() -> None:
    found = fit(Cost("none", "float32", WIDE, disk=(9, 5, 6, 9), rate=50_000.0), LITTLE)
    assert found is not None
    assert (found.span, found.weight_bytes, found.cache_tokens, found.disk_bytes) == (Span(1, 3), 200, 10, 11)
    assert found.decode_ms == pytest.approx(2.0)
    assert found.block_bytes == 100


def test_a_scheme_is_named_only_where_more_fits_by_it() -> None:
    schemes = [("int8", NARROW), ("int4", NARROW)]
    assert longest(WIDE, Allowance(50, 0, 10)) is None
    assert roomier(schemes, LITTLE, 2) == ("int8", 4)
    assert roomier(schemes, LITTLE, 4) is None
    assert roomier([("int8", WIDE)], Allowance(50, 0, 10), 0) is None


def test_what_does_not_fit_has_a_line_too() -> None:
    cost = Cost("none", "float32", WIDE, (0, 0, 0, 0), 1.0)
    header, row = table([(cost, fit(cost, Allowance(50, 0, 10)))], 4)
    assert header.split()[:3] == ["scheme", "dtype", "blocks"]
    assert row.split() == ["none", "float32", "0", "of", "4", "100", "B", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("wishes", "advised"),
    [({}, True), ({"quantization": "none"}, False), ({"memory": 64 * MIB}, False)],
)
def test_a_server_says_by_which_scheme_more_fits(wishes: dict[str, object], advised: bool) -> None:
    options = {"dtype": "float32", "device": "cpu", "memory": 4 * MIB, "cache_tokens": 100, **wishes}
    host = Hosting(ServeOptions(MODEL, **options), ServerConfig(), progress=False)  # type: ignore[arg-type]
    advice = host.advice(len(host.choose([])))
    assert (advice is not None and "--quantization int" in advice) == advised


def test_where_no_block_fits_the_refusal_names_the_scheme_by_which_some_do() -> None:
    options = ServeOptions(MODEL, dtype="float32", device="cpu", memory=MIB, cache_tokens=10)
    with pytest.raises(InvalidInput, match=r"no block fits.*with --quantization int4 \d of 8 blocks fit"):
        Hosting(options, ServerConfig(), progress=False).choose([])


def test_threads_that_wait_for_the_scheduler_are_not_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's time does not depend on the weights: one thread is measured beside the others."""
    before = torch.get_num_threads()
    monkeypatch.setattr(rates, "BYTES", 1)
    monkeypatch.setattr(rates, "_fastest", lambda layers, row, threads: 0.5 if threads == 1 else 8.0)
    torch.set_num_threads(2)
    try:
        measured = rates.rate("int4", torch.float32)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert measured == rates.Rate(rates.WIDTH**2 * 5 / 8 / 0.5, 1)


@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
def test_every_scheme_is_measured_here(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BYTES", 1)
    monkeypatch.setattr(rates, "WIDTH", 256)
    assert rates.rate(scheme, torch.float32).bytes_per_second > 0
