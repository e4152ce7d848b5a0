"""The small internet does what it says."""

from __future__ import annotations

import pytest

from tests.field import lab
from tests.field.selftest import selftest

pytestmark = pytest.mark.processes


@pytest.mark.soak
@pytest.mark.skipif(lab.possible() is not None, reason=lab.possible() or "")
def test_delays_rates_and_every_kind_of_nat() -> None:
    selftest()
