"""Whatever the gateway's own description of itself allows, and what it does not, it answers without failing."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from swarm.gateway.http.app import create_app
from swarm.gateway.http.guard import HttpSettings
from tests.gateway.scripted import Scripted

EXPECTED = (502, 503)
"""Answers that say what the swarm lacks; a 500 is a failure of ours."""

app = create_app({"tiny": Scripted()}, HttpSettings(hosts=("*",), origins=("*",)))
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = [result.ok() for result in schema.get_all_operations()]
REQUESTS = [
    *(pytest.param(operation, GenerationMode.POSITIVE, id=f"allowed {operation.label}") for operation in OPERATIONS),
    *(
        pytest.param(operation, GenerationMode.NEGATIVE, id=f"wrong {operation.label}")
        for operation in OPERATIONS
        if operation.body
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("operation", "mode"), REQUESTS)
def test_no_request_makes_the_gateway_fail(operation: Any, mode: GenerationMode) -> None:
    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=100, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny"
        response = case.call()
        assert response.status_code < 500 or response.status_code in EXPECTED, response.text
        checks = [status_code_conformance]
        if not (isinstance(case.body, dict) and case.body.get("stream")):
            checks.append(response_schema_conformance)
        case.validate_response(response, checks=checks)

    check()
