"""A place in the network: what `open` gives, however it is made."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from swarm.errors import DaemonFailed
from swarm.testing import SimulatedNetwork, run


def test_a_place_in_a_simulated_network_is_left_at_the_end_of_its_block() -> None:
    async def main() -> None:
        simulated = SimulatedNetwork()
        async with simulated.join("one") as network:
            assert network.host.peer_id == "one"
            assert network.directory.statistics().peers == 0
            assert await network.directory.models() == []
        assert not simulated.hosts["one"].alive

    run(main())


def test_a_lost_network_says_so() -> None:
    async def main() -> None:
        simulated = SimulatedNetwork()
        network = simulated.join("one")
        asyncio.get_running_loop().call_later(3600.0, simulated.kill, "one")
        with pytest.raises(DaemonFailed, match="one"):
            await network.lost()
        assert asyncio.get_running_loop().time() == 3600.0

    run(main())


def test_leaving_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck:
        async def close(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        network = SimulatedNetwork().join("one")
        with caplog.at_level(logging.WARNING, logger="swarm"):
            await dataclasses.replace(network, host=Stuck()).close()  # type: ignore[arg-type]

    run(main())
    assert "did not close within 5 s" in caplog.text
