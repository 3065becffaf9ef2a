"""A logits processor of an installed package, through router, prefill and decode worker, equals the offline one."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from tests.cluster import make_model, prompt_of
from tests.plugin import install
from tests.processes import HANG_S, BatonProcess, eventually, free_ports

from baton.llm import LLM, SamplingParams

PROMPT = prompt_of(77, 60)


def test_it_is_named_in_a_request_and_exact_over_both_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, site, (port,) = make_model(tmp_path / "tiny"), install(tmp_path / "site"), free_ports(1)
    monkeypatch.syspath_prepend(str(site))
    llm = LLM(str(model), use_tqdm=False, num_gpu_blocks_override=128)
    wanted = SamplingParams(
        temperature=0, max_tokens=12, ignore_eos=True, logits_processors=["shift"], extra_args={"by": 3}
    )
    expected = llm.generate({"prompt_token_ids": PROMPT}, wanted, use_tqdm=False)[0].outputs[0].token_ids
    arguments = ["up", str(model), "--served-model-name", "tiny", "--port", str(port), "--path", "remote"]
    arguments += ["--kv-cache-memory-bytes", str(48 * 2**20), "--drain-s", "1"]
    process = BatonProcess(arguments, tmp_path / "up.log", port, {"PYTHONPATH": str(site)}).start()
    try:
        eventually(lambda: "Try:" in process.log() or not process.is_running, "all are ready")
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0, timeout=HANG_S)

        def ask(**fields: object) -> list[int]:
            extra = {"ignore_eos": True, "return_token_ids": True, **fields}
            answer = client.completions.create(
                model="tiny", prompt=PROMPT, temperature=0, max_tokens=12, extra_body=extra
            )
            return list((answer.choices[0].model_extra or {})["token_ids"])

        assert ask(logits_processors=["shift"], vllm_xargs={"by": 3}) == expected
        assert ask(logits_processors=[{"name": "shift", "args": {"by": 3}}]) == expected
        assert ask() != expected
        for fields, says in (
            ({"logits_processors": ["nobody"]}, "breaks, missing, numbers, shift"),
            ({"logits_processors": ["shift"], "vllm_xargs": {"by": "x"}}, "is no number"),
            ({"vllm_xargs": {"by": 3}}, "names none"),
        ):
            with pytest.raises(openai.BadRequestError, match=says):
                ask(**fields)
    finally:
        process.stop()
