"""The `baton` command. Heavy imports wait for the sub-command that needs them, so that --help answers at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option, Typer

from baton.bench.commands import bench
from baton.command import ALL, Command, Commands, Group, ListsCommand, ServiceCommand
from baton.config import EngineConfig, ModelImpl
from baton.errors import BatonError, ConfigError
from baton.flag_groups import COMMON
from baton.flags import came_from, with_flags
from baton.kvtransfer.store.settings import StoreConfig, StoreSize
from baton.logs import LogConfig, say_why_it_ends
from baton.router.config import RouterConfig
from baton.router.http_config import HttpConfig
from baton.spelling import tell
from baton.up_config import UpConfig
from baton.version import version_lines
from baton.worker.settings import WorkerConfig

app = Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Serve large language models, prefill and decode apart.",
)
app.add_typer(bench, name="bench")
config_app = Typer(cls=Group, no_args_is_help=True, help="Look at settings.")
app.add_typer(config_app, name="config")

SERVICES = ("up", "serve", "router", "prefill", "decode", "kvstore")
Url = Annotated[str, Option(envvar="BATON_URL", help="the server")]
ApiKey = Annotated[str | None, Option(envvar="BATON_API_KEY", help="key to send; of several, the first")]
Quick = Annotated[str | None, Option("-q", "--quick", metavar="TEXT", help="send this alone, and end")]
ModelName = Annotated[str | None, Option(help="whom to ask; none: the first model that the server names")]
MaxTokens = Annotated[int | None, Option(min=1, help="longest answer, in tokens; none: the server's own limit")]
Temperature = Annotated[float | None, Option(min=0, help="0 takes the likeliest token; none: the server's default")]


class UpCommand(ServiceCommand):
    """`baton up`: what everybody may need first, the rest on request."""

    def is_rare(self, name: str) -> bool:
        """Whether --help leaves a flag out."""
        return name not in COMMON

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and name vLLM's variables: whoever sets a key by one would serve everybody."""
        if theirs := sorted(name for name in os.environ if name.startswith("VLLM_")):
            tell(f"{', '.join(theirs)} in the environment: vLLM's, and not read here. Baton's variables are BATON_….")
        return super().parse_args(ctx, args)


def _show_all(context: Context, asked: bool) -> None:
    if asked:
        context.meta[ALL] = True
        print(context.get_help())
        raise SystemExit(0)


HelpAll = Annotated[
    bool,
    Option("--help-all", is_eager=True, callback=_show_all, rich_help_panel="Help", help="show every flag, and end"),
]
ModelTag = Annotated[
    str | None, Argument(metavar="MODEL", help="hub id or folder; none: --model, or the bundled demo model")
]


def _show_version(asked: bool) -> None:
    if asked:
        print(version_lines()[0])
        raise SystemExit(0)


@app.callback()
def baton(
    version: Annotated[
        bool, Option("--version", "-V", is_eager=True, callback=_show_version, help="print the version, and end")
    ] = False,
) -> None:
    """Serve large language models, prefill and decode apart."""


@with_flags
def up(
    context: Context,
    up_config: UpConfig,
    engine: EngineConfig,
    http: HttpConfig,
    store: StoreSize,
    logs: LogConfig,
    model_tag: ModelTag = None,
    help_all: HelpAll = False,
) -> None:
    """Serve a model on this machine: Redis, router, prefill and decode workers, until Ctrl-C."""
    import asyncio

    from baton.up import run_up

    if model_tag is not None:
        if came_from(context, "model") == "flag" and engine.model != model_tag:
            raise ConfigError(f"model={engine.model!r} is not valid beside MODEL={model_tag!r}: name one.")
        engine = dataclasses.replace(engine, model=model_tag)
    sys.exit(asyncio.run(run_up(up_config, engine, http, logs, store)))


app.command("up", cls=UpCommand)(up)
app.command("serve", cls=UpCommand, short_help="The same as `up`, by vLLM's name.")(up)


@app.command("router", cls=ServiceCommand)
@with_flags
def router(config: RouterConfig, http: HttpConfig, logs: LogConfig) -> None:
    """Serve the OpenAI API over the workers that Redis, or --worker, names."""
    from baton.services import run_router

    run_router(config, http, logs)


@app.command("prefill", cls=ServiceCommand)
@with_flags
def prefill(engine: EngineConfig, worker: WorkerConfig, logs: LogConfig) -> None:
    """Serve prompts: compute them, sample their first token, hold their KV until a decode worker has it."""
    from baton.services import run_worker

    sys.exit(run_worker(engine, worker, logs, ["prefill"]))


@app.command("decode", cls=ServiceCommand)
@with_flags
def decode(
    engine: EngineConfig,
    worker: WorkerConfig,
    logs: LogConfig,
    also_prefill: Annotated[
        bool, Option(rich_help_panel="Workers", help="serve prompts for other decode workers too")
    ] = False,
) -> None:
    """Serve requests to their end: fetch the prompt's KV or compute it, and generate."""
    from baton.services import run_worker

    sys.exit(run_worker(engine, worker, logs, ["decode", "prefill"] if also_prefill else ["decode"]))


@app.command("kvstore", cls=ServiceCommand)
@with_flags
def kvstore(config: StoreConfig, size: StoreSize, logs: LogConfig) -> None:
    """Share KV in memory, and on disk, among the workers of this host: what one has computed the others need not."""
    from baton.services import run_kvstore

    sys.exit(run_kvstore(config, size, logs))


@app.command("chat", cls=Command)
def chat(
    url: Url = "http://127.0.0.1:8000",
    model_name: ModelName = None,
    system_prompt: Annotated[str | None, Option(help="what the conversation begins with")] = None,
    quick: Quick = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    api_key: ApiKey = None,
) -> None:
    """Talk with a model that a server has; an empty line or Ctrl-D ends."""
    from baton.talk import Talk

    talk = Talk(url, api_key, model_name, {"max_tokens": max_tokens, "temperature": temperature})
    sys.exit(talk.chat(system_prompt, quick))


@app.command("complete", cls=Command)
def complete(
    url: Url = "http://127.0.0.1:8000",
    model_name: ModelName = None,
    quick: Quick = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    api_key: ApiKey = None,
) -> None:
    """Let a model of a server go on with your text; an empty line or Ctrl-D ends."""
    from baton.talk import Talk

    talk = Talk(url, api_key, model_name, {"max_tokens": max_tokens, "temperature": temperature})
    sys.exit(talk.complete(quick))


@app.command("run-batch", cls=ServiceCommand)
@with_flags
def run_batch(
    context: Context,
    engine: EngineConfig,
    input_file: Annotated[Path, Option("-i", "--input-file", help="JSON lines: custom_id, method, url, body")],
    output_file: Annotated[
        Path, Option("-o", "--output-file", help="a line for each; one that is there is gone on with")
    ],
    model_tag: ModelTag = None,
    url: Annotated[
        str | None, Option(envvar="BATON_URL", help="a server that runs; none: one is started, and ends with this")
    ] = None,
    concurrency: Annotated[int, Option(min=1, max=4096, help="lines at once")] = 64,
    api_key: ApiKey = None,
) -> None:
    """Answer a file of requests; end with 1 where a line failed."""
    import asyncio

    from baton.run_batch import Job, answer_file
    from baton.talk import first_key

    if model_tag is not None:
        if came_from(context, "model") == "flag" and engine.model != model_tag:
            raise ConfigError(f"model={engine.model!r} is not valid beside MODEL={model_tag!r}: name one.")
        engine = dataclasses.replace(engine, model=model_tag)
    if url is not None and engine.model is not None:
        raise ConfigError(f"model={engine.model!r} is not valid beside --url: the server has its model.")
    job = Job(input_file, output_file, concurrency, first_key(api_key))
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(answer_file(job, url, engine)))
    sys.exit(130)


@app.command("top", cls=Command)
def top(
    url: Url = "http://127.0.0.1:8000",
    interval: Annotated[float, Option(min=0.1, help="seconds between frames")] = 1.0,
    once: Annotated[bool, Option(help="print one frame and end")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show workers and requests, live: queues, KV use, speeds, latencies."""
    import asyncio

    from baton.talk import first_key
    from baton.top import run

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(url, api_key=first_key(api_key), interval_s=interval, once=once))


@app.command("verify", cls=Command)
def verify(
    url: Url = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, Option(help="hub id or folder of the server's model, for the offline LLM; none: the server's name")
    ] = None,
    prompts: Annotated[int, Option(min=1, max=64, help="prompts, each asked greedily and with a seed")] = 8,
    offline: Annotated[bool, Option(help="compare with the LLM in this process too, where torch is installed")] = True,
    api_key: ApiKey = None,
) -> None:
    """Compare all workers and paths of a running stack, token for token; end with 1 where they differ."""
    import asyncio

    from baton.talk import first_key
    from baton.verify import Settings
    from baton.verify import verify as compare

    settings = Settings(url=url, api_key=first_key(api_key), model=model, num_prompts=prompts, offline=offline)
    sys.exit(asyncio.run(compare(settings)))


@app.command("chaos", cls=Command)
def chaos(
    url: Url = "http://127.0.0.1:8000",
    rounds: Annotated[int, Option(min=1, help="faults, one after another")] = 8,
    lasting: Annotated[
        str | None, Option("--for", metavar="TIME", help="go on for so long, as 90s, 30m or 8h, and watch what grows")
    ] = None,
    streams: Annotated[int, Option(min=2, max=256, help="live streams under each fault")] = 16,
    role: Annotated[
        list[str] | None, Option(help="only processes of this role, as 'decode engine' or router; again for another")
    ] = None,
    seed: Annotated[int, Option(help="of the choice among processes of one role")] = 0,
    api_key: ApiKey = None,
) -> None:
    """Kill and stop processes of your own `baton up` under live streams; end with 1 where an answer is lost or changed."""
    import asyncio

    from baton.chaos import chaos as disturb
    from baton.chaos import seconds_of
    from baton.talk import first_key

    for_s = None if lasting is None else seconds_of(lasting)
    sys.exit(asyncio.run(disturb(url, first_key(api_key), rounds, streams, seed, for_s=for_s, roles=role or ())))


@app.command("doctor", cls=ListsCommand)
def doctor(
    model: Annotated[
        str | None, Argument(help="hub id, folder, llama-3.1-8b or qwen3-0.6b; none: the bundled demo model")
    ] = None,
    plan: Annotated[
        str | None, Option(metavar="DEVICE", help="from a table, with no GPU here: h100, h200, a100, l4, ...")
    ] = None,
    devices: Annotated[int | None, Option(min=1, help="how many serve; none: those here, of a plan 2")] = None,
    link_gbps: Annotated[
        float | None, Option(min=0.001, help="GB/s of KV between two of them; none: the best that was measured")
    ] = None,
    rate: Annotated[float | None, Option(min=0.001, max=10_000, help="requests a second to advise for")] = None,
    input_len: Annotated[tuple[int, int], Option(help="their shortest and longest prompt, tokens")] = (512, 3584),
    output_len: Annotated[tuple[int, int], Option(help="their shortest and longest answer, tokens")] = (64, 448),
    trace: Annotated[
        Path | None, Option(help="or a trace: JSON lines of timestamp (ms), input_length, output_length")
    ] = None,
    ttft_target_ms: Annotated[float, Option(min=0.001, help="latest first token of a good request")] = 500.0,
    itl_target_ms: Annotated[float, Option(min=0.001, help="largest p99 of a good request's own gaps")] = 30.0,
    redis_url: Annotated[
        str | None, Option(envvar="BATON_REDIS_URL", help="Redis to ask; none: look for a server")
    ] = None,
    port: Annotated[int, Option(min=1, max=65535, help="port that the router shall have")] = 8000,
    measure: Annotated[bool, Option(help="measure memory, products and links, which takes some seconds")] = True,
    as_json: Annotated[bool, Option("--json", help="one JSON object in place of lines")] = False,
) -> None:
    """Say what this machine can do, and whether prefill and decode apart pay; end with 1 where something is broken."""
    from baton.bench.goodput import Targets
    from baton.doctor.examination import Questions, examine

    asked = Questions(
        model=model,
        plan=plan,
        num_devices=devices,
        link_gbps=link_gbps,
        rate=rate,
        input_len=input_len,
        output_len=output_len,
        trace=trace,
        targets=Targets(ttft_target_ms, itl_target_ms),
        redis_url=redis_url,
        port=port,
        measures=measure,
        as_json=as_json,
    )
    sys.exit(examine(asked))


@app.command("inspect", cls=Command)
def inspect(
    model: Annotated[str, Argument(help="hub id or folder; of a hub model all but the weights is fetched")],
    gpu: Annotated[
        str | None, Option(metavar="DEVICE", help="from a table: h100, h200, a100, l40s, 4090, ...; none: this machine")
    ] = None,
    context: Annotated[int | None, Option(min=1, help="tokens of the streams to count; none: several lengths")] = None,
    max_model_len: Annotated[int | None, Option(min=2, help="as of `baton up`; none: the model's context")] = None,
    revision: Annotated[str | None, Option(help="branch, tag or commit of a hub model")] = None,
    hf_overrides: Annotated[str | None, Option(help="JSON object put over config.json")] = None,
    model_impl: Annotated[ModelImpl, Option(help="whose definition of the model runs")] = "auto",
    as_json: Annotated[bool, Option("--json", help="one JSON object in place of lines")] = False,
) -> None:
    """Say what a checkpoint is, whether Baton serves it, and how many streams fit a device; end with 1 where it does not."""
    from baton.inspection.report import inspect as tell_all

    engine = EngineConfig(
        model=model, revision=revision, max_model_len=max_model_len, hf_overrides=hf_overrides, model_impl=model_impl
    )
    sys.exit(tell_all(engine, gpu=gpu, context=context, as_json=as_json))


@config_app.command("show", cls=Command, context_settings={"ignore_unknown_options": True})
def config_show(
    words: Annotated[
        list[str] | None,
        Argument(metavar="[up|router|prefill|decode|kvstore] FLAGS", help="whose settings; none: those of up"),
    ] = None,
) -> None:
    """Print the settings that a service would start with, and where each comes from, as a file for --config."""
    import typer.main

    from baton.config_show import settings_of

    services: Any = typer.main.get_command(app)
    name, *flags = words if words and words[0] in SERVICES else ["up", *(words or ())]
    print(settings_of(services.commands[name], flags))


@app.command("secrets", cls=Command)
def secrets(folder: Annotated[Path, Argument(help="where the files go; those that are there stay")]) -> None:
    """Make the secrets that a deployment's services share, a file each."""
    from baton.secret_files import write_secrets

    made = write_secrets(folder)
    print(f"{folder}: {', '.join(made) if made else 'nothing made, all of them were there'}")


@app.command("version", cls=Command)
def version(
    verbose: Annotated[bool, Option("--verbose", "-v", help="also Python, torch, GPUs: what an issue needs")] = False,
) -> None:
    """Print the version."""
    print("\n".join(version_lines(verbose=verbose)))


def _asks_for_json(words: Sequence[str]) -> bool:
    return "--log-format json" in " ".join(words).replace("=", " ") or os.environ.get("BATON_LOG_FORMAT") == "json"


def main(name: str | None = None) -> None:
    """Run the command; what Baton raises on purpose is shown as one line."""
    try:
        app(prog_name=name)
    except BatonError as error:
        say_why_it_ends(error, as_json=_asks_for_json(sys.argv))
        sys.exit(2)


if __name__ == "__main__":
    main()
