"""The model's sampling defaults hold on the server where a request says nothing."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from baton.protocol import SamplingParams

from .cluster import Cluster, cluster, wait_until


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("defaults")
    (folder / "tiny").mkdir()
    content = {"do_sample": True, "top_k": 1, "temperature": 0.6, "repetition_penalty": 1.1}
    (folder / "tiny" / "generation_config.json").write_text(json.dumps(content))
    with cluster(folder, [{"worker_id": "d0"}], override_generation_config='{"repetition_penalty": 1.2}') as made:
        yield made


def _params(serving: Cluster, **asked: Any) -> SamplingParams:
    """Return what a request becomes on its way to the workers."""
    client: openai.OpenAI = serving.client()
    with client.completions.create(model="tiny", prompt=[20, 30], max_tokens=400, stream=True, **asked):
        wait_until(lambda: serving.state.dispatcher.flows)
        (running,) = serving.state.dispatcher.flows.values()
        params = running.flow.generation.params
    wait_until(lambda: not serving.state.dispatcher.flows)
    return params


def test_a_request_that_leaves_sampling_out_takes_the_models(serving: Cluster) -> None:
    params = _params(serving)
    assert (params.top_k, params.temperature, params.repetition_penalty, params.top_p) == (1, 0.6, 1.2, 1.0)


def test_what_a_request_says_holds(serving: Cluster) -> None:
    params = _params(serving, temperature=1.0, top_p=0.5, extra_body={"top_k": 0, "repetition_penalty": None})
    assert (params.top_k, params.temperature, params.repetition_penalty, params.top_p) == (0, 1.0, 1.2, 0.5)


def test_the_models_card_shows_its_defaults(serving: Cluster) -> None:
    card: Any = serving.client().models.retrieve("tiny")
    assert card.default_sampling_params == {"top_k": 1, "temperature": 0.6, "repetition_penalty": 1.2}
