"""Settings of `baton up`; flags are made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baton.config import setting
from baton.errors import ConfigError
from baton.generation_defaults import read_override
from baton.protocol import MAX_LOGPROBS
from baton.worker.settings import ITL_TARGET_HELP, check_itl_target


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """What runs on this machine, beside the engines' own settings."""

    prefill: int | None = setting(
        None,
        "prefill workers; 0: decode workers compute prompts themselves; none: 1, unless the decode workers need all GPUs",
    )
    decode: int = setting(1, "decode workers")
    also_prefill: bool = setting(True, "several decode workers compute prompts for one another too, where that pays")
    host: str = setting(
        "127.0.0.1",
        "address on which the router listens; auto: that of this machine's own name; workers stay on the loopback",
    )
    port: int = setting(8000, "port of the router")
    download_dir: str | None = setting(None, "folder for models of the hub; none: as HF_HOME says")
    redis_url: str | None = setting(
        None, "Redis to use; none: one is started if this machine has a server, else there is none"
    )
    path: Literal["auto", "remote", "local"] = setting(
        "auto", "auto: prompts go to prefill workers where that pays; remote: always; local: never"
    )
    served_model_name: tuple[str, ...] = setting((), "names that clients may send; none: the model's")
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
    data_dir: str | None = setting(None, "folder for files and batches of clients; none: neither is kept")
    max_queue_s: float = setting(
        10.0,
        "longest wait that is predicted for a request, before its first token or its second; more is refused; 0: any",
    )
    ttft_target_ms: float = setting(
        0.0, "refuse what would wait too long to have its first token by then; 0: only --max-queue-s counts"
    )
    itl_target_ms: float | None = setting(None, ITL_TARGET_HELP)
    drain_s: float = setting(10.0, "how long open streams may go on after Ctrl-C")
    ask: bool = setting(False, "send one chat request when ready, and print the answer, its route and its times")
    once: bool = setting(False, "end after that answer")

    @property
    def is_soft(self) -> bool:
        """Whether decode workers have the prefill leg too; what a lone one computes for itself needs none."""
        return self.also_prefill and self.decode > 1

    def __post_init__(self) -> None:
        read_override(self.override_generation_config)
        if self.prefill is not None and self.prefill < 0:
            raise ConfigError(f"prefill={self.prefill} is not valid: it must be at least 0.")
        if self.decode < 1:
            raise ConfigError(f"decode={self.decode} is not valid: requests end on decode workers, so at least 1.")
        check_itl_target(self.itl_target_ms)
        for name in ("max_queue_s", "ttft_target_ms"):
            if not getattr(self, name) >= 0:  # nor not a number
                raise ConfigError(f"{name}={getattr(self, name)!r} is not valid: it must be at least 0.")
        if not 0 < self.port < 65536:
            raise ConfigError(f"port={self.port} is not valid: it must be 1 to 65535.")
