"""Whatever the gateway's own description of itself allows, and what it does not, it answers without failing."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from swarm.gateway.openai.app import create_app
from swarm.gateway.openai.guard import HttpSettings
from tests.gateway.scripted import Scripted

EXPECTED = (502, 503)
"""Answers that say what the swarm lacks; a 500 is a failure of ours."""

app = create_app({"tiny": Scripted()}, HttpSettings(hosts=("*",), origins=("*",)))
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.filterwarnings("ignore")
@schema.parametrize()
@settings(
    max_examples=150,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
def test_no_request_makes_the_gateway_fail(case: Any) -> None:
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "tiny"
    response = case.call()
    assert response.status_code < 500 or response.status_code in EXPECTED, response.text
    checks = [status_code_conformance]
    if not (isinstance(case.body, dict) and case.body.get("stream")):
        checks.append(response_schema_conformance)
    case.validate_response(response, checks=checks)
