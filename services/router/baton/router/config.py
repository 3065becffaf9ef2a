"""A router's settings; flags are made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from baton.config import setting
from baton.errors import ConfigError
from baton.generation_defaults import read_override
from baton.protocol import MAX_LOGPROBS
from baton.requests.limits import DEFAULT_LIMITS, Limits

PolicyName = Literal["cost", "least-load", "round-robin", "prefix-only"]
PathMode = Literal["auto", "remote", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """One router process. Nothing that is learned from workers is written back here."""

    model: str = setting("", "hub id or folder of the model whose tokenizer and chat template serve")
    tokenizer: str | None = setting(None, "hub id or folder of the tokenizer; none: the model's own")
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    tokenizer_revision: str | None = setting(
        None, "branch, tag or commit of a tokenizer from a repository of its own; none: --revision"
    )
    chat_template: str | None = setting(
        None, "chat template in place of the model's: a file, or the name of another one that the model has"
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = setting(
        "auto", "how content reaches the template; auto: as it reads it; string: as one text; openai: as parts"
    )
    tool_call_parser: str = setting(
        "auto",
        "how the model writes calls of tools, by vLLM's name: hermes, llama3_json and so on; auto: as its chat template says; none: calls are text",
    )
    reasoning_parser: str = setting(
        "auto",
        "how the model writes what it thinks, by vLLM's name: qwen3, deepseek_r1 and so on; auto: as its chat template says; none: thoughts are text",
    )
    trust_request_chat_template: bool = setting(
        False, "render the chat_template that a request brings, in the sandbox that bounds every template"
    )
    generation_config: str = setting(
        "auto",
        "sampling where a request says none: auto: the model's generation_config.json; none: neutral; or a folder with the file",
    )
    override_generation_config: str | None = setting(
        None, 'values over those of generation_config.json, as JSON: {"temperature": 0.6}'
    )
    served_model_name: tuple[str, ...] = setting(
        (), "names that clients may send; the first is in answers; none: the model's"
    )
    host: str = setting("127.0.0.1", "address to listen on; auto: that of this machine's own name")
    port: int = setting(8000, "port to listen on")
    api_key: tuple[str, ...] = setting((), "keys that clients may send; none: everybody may ask")
    admin_api_key: str | None = setting(
        None, "key of those who may reset caches, put the model to sleep and end requests; none: nobody may"
    )
    enable_tokenizer_info_endpoint: bool = setting(False, "serve GET /tokenizer_info: the tokenizer's settings")
    max_logprobs: int = setting(
        MAX_LOGPROBS,
        "most log-probabilities a position beside the token's own; -1: any number, and -1 in requests for all tokens",
    )
    tenants: str | None = setting(
        None, "YAML file with the weight and the caps of each API key; none: all keys have the same weight and no caps"
    )
    worker: tuple[str, ...] = setting((), "control endpoints of workers, beside those that Redis names")
    redis_url: str | None = setting(None, "where workers announce themselves; none: only --worker")
    redis_password: str | None = setting(None, "password of Redis, where the URL has none")
    cache_key: str = setting("", "secret of the deployment under which blocks are hashed; the same on workers")
    curve_server_key: str | None = setting(None, "workers' public CURVE key (Z85), for control between hosts")
    curve_public_key: str | None = setting(None, "this router's public CURVE key (Z85)")
    curve_secret_key: str | None = setting(None, "this router's secret CURVE key (Z85)")

    policy: Literal["cost", "least-load", "round-robin", "prefix-only"] = setting(
        "cost", "how workers are chosen; all but cost are for comparison"
    )
    path: Literal["auto", "remote", "local"] = setting(
        "auto", "auto: prefill workers where they pay; remote: always; local: never"
    )
    default_prefill_rate: float = setting(8000.0, "prompt tokens a second of a worker that has not reported yet")
    interference_weight: float = setting(
        0.05, "what delaying one running stream by 1 ms costs, in ms of a new request's wait"
    )

    max_streams: int = setting(16_384, "most requests at once")
    max_queue_s: float = setting(
        10.0,
        "longest wait that is predicted for a request, before its first token or its second; more is refused; 0: any",
    )
    ttft_target_ms: float = setting(
        0.0, "refuse what would wait too long to have its first token by then; 0: only --max-queue-s counts"
    )
    itl_target_ms: float = setting(
        0.0, "hold a prefill worker's first token until the second can follow within this; 0: send it at once"
    )
    max_queued_tokens: int = setting(0, "most prompt tokens waiting for their first token; 0: any")
    kv_overcommit: float = setting(
        4.0, "KV blocks that accepted requests may come to need, as a multiple of what decode workers have"
    )
    max_choices: int = setting(DEFAULT_LIMITS.max_choices, "most answers of a request: prompts times n")
    max_prompts: int = setting(DEFAULT_LIMITS.max_prompts, "most prompts of a completions request")
    max_stop_strings: int = setting(DEFAULT_LIMITS.max_stop_strings, "most stop strings of a request")
    max_prompt_scores: int = setting(
        DEFAULT_LIMITS.max_prompt_scores,
        "most log-probabilities of prompts in an answer: their tokens times alternatives times n",
    )
    max_answer_scores: int = setting(
        DEFAULT_LIMITS.max_answer_scores,
        "most log-probabilities of a whole answer's own tokens: tokens times alternatives",
    )
    max_body_nbytes: int = setting(8 * 2**20, "longest request body")
    max_header_nbytes: int = setting(64 * 2**10, "longest request head")
    head_timeout_s: float = setting(10.0, "how long a request head may take to arrive")
    body_timeout_s: float = setting(30.0, "how long a request body may take to arrive")
    keep_alive_s: float = setting(10.0, "seconds of silence after which a waiting stream gets a comment")
    stream_buffer_nbytes: int = setting(1 * 2**20, "text that waits for a slow client before its stream ends")
    slow_client_s: float = setting(60.0, "how long one write to a client may take before its stream ends")
    request_timeout_s: float = setting(3600.0, "deadline of a request that names none")
    max_replays: int = setting(
        3, "how often a request goes to other workers after failures between which it got next to nothing"
    )
    worker_wait_s: float = setting(30.0, "how long a request waits for a worker when all of them are away")
    stall_s: float = setting(
        120.0, "how long a worker may do no step while it has requests, before it is taken as dead"
    )
    response_store: Literal["auto", "memory", "off"] = setting(
        "auto", "where answers of /v1/responses are kept; auto: in Redis, if there is one, and in the router's memory"
    )
    response_ttl_s: float = setting(86_400.0, "how long an answer of /v1/responses is kept")
    response_memory_nbytes: int = setting(
        256 * 2**20, "most memory for answers that are kept: of the router, and of Redis"
    )
    max_responses: int = setting(10_000, "most answers that are kept of one API key; older ones go first")
    template_timeout_s: float = setting(2.0, "how long a chat template may render")
    max_rendered_nbytes: int = setting(16 * 2**20, "longest text that a chat template may give")
    data_dir: str | None = setting(
        None, "folder for files and batches of clients; several routers may share one; none: neither is kept"
    )
    batch_concurrency: int = setting(16, "most lines of batches at once")
    max_batch_lines: int = setting(50_000, "most lines of a batch")
    max_file_nbytes: int = setting(200 * 2**20, "longest file that is taken")
    max_files: int = setting(1000, "most files of a key")
    tokenizer_threads: int = setting(2, "threads for long prompts")
    drain_s: float = setting(30.0, "how long open streams may go on after SIGTERM")

    def __post_init__(self) -> None:
        read_override(self.override_generation_config)
        for name, hint in get_type_hints(RouterConfig).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                choices = ", ".join(get_args(hint))
                raise ConfigError(f"{name}={value!r} is not valid: it must be one of {choices}.")
            if hint in (int, float) and not value >= (-1 if name == "max_logprobs" else 0):  # nor not a number
                raise ConfigError(f"{name}={value!r} is not valid: it must be at least 0.")
        if self.admin_api_key is not None and self.admin_api_key in self.api_key:
            raise ConfigError("admin_api_key is not valid: it is one of --api-key. Give admins a key of their own.")
        if self.admin_api_key is not None and self.admin_api_key.split() != [self.admin_api_key]:
            raise ConfigError("admin_api_key is not valid: it must be a word without spaces.")
        curve = (self.curve_server_key, self.curve_public_key, self.curve_secret_key)
        if any(curve) and not all(curve):
            raise ConfigError("curve_server_key, curve_public_key and curve_secret_key go together: give all three.")

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(
            self.max_choices,
            self.max_prompts,
            self.max_stop_strings,
            self.max_prompt_scores,
            self.max_answer_scores,
            self.max_logprobs,
        )

    @property
    def model_names(self) -> tuple[str, ...]:
        """What clients may call the model; the first stands in answers."""
        return self.served_model_name or (Path(self.model).name if Path(self.model).is_dir() else self.model,)
