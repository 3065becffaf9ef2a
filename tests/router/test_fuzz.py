"""The OpenAPI file as a source of requests, good and bad: never a 500, never a dead worker."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.processes import HANG_S

from .cluster import Cluster, cluster


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    worker = [{"worker_id": "d0", "answer_len": 4}]
    with cluster(tmp_path_factory.mktemp("fuzz"), worker, max_streams=64, request_timeout_s=5.0) as made:
        yield made


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_makes_the_server_fail(fuzzed: Cluster, mode: schemathesis.GenerationMode) -> None:
    """Every operation, with requests that the file allows and with requests that it forbids."""
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(
                checks=(
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ),
                timeout=HANG_S,
            )

        try:
            check()
        except Unsatisfiable:  # nothing can be wrong about a request that takes nothing
            assert mode is schemathesis.GenerationMode.NEGATIVE


def test_the_worker_is_alive_and_nothing_is_left_after_all_that(fuzzed: Cluster) -> None:
    answer = httpx.post(f"{fuzzed.url}/v1/completions", json={"prompt": [20, 30], "max_tokens": 3}, timeout=HANG_S)
    assert answer.status_code == 200
    assert not fuzzed.state.dispatcher.flows
    assert fuzzed.workers["d0"].process is not None
    assert fuzzed.workers["d0"].process.poll() is None
