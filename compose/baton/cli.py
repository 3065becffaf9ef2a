"""The `baton` command. Heavy imports wait for the sub-command that needs them, so that --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.config import EngineConfig
from baton.errors import BatonError
from baton.flags import with_flags
from baton.router.config import RouterConfig
from baton.up_config import UpConfig
from baton.worker.settings import WorkerConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve large language models, prefill and decode apart.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure, beside the peer or the physical floor.")
app.add_typer(bench, name="bench")

Json = Annotated[Path | None, typer.Option("--json", help="also write the table to this file")]


@bench.command("offline")
def bench_offline(
    model: Annotated[
        str | None, typer.Argument(help="hub id or folder; none: the bundled demo model")
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="cpu: a crowd and one stream, here; h200: the recorded GPU workloads, random weights"
        ),
    ] = "cpu",
    compare: Annotated[str, typer.Option(help="transformers: run it beside, in suite cpu; none")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="timed runs; the median counts")] = 3,
    json_file: Json = None,
) -> None:
    """Offline throughput of a crowd of requests, and the speed of a single stream."""
    from baton.bench.offline import run_cpu
    from baton.llm import LLM

    if suite == "h200":
        from baton.bench.h200 import MODELS, run

        run(MODELS, repeats=repeats, json_file=json_file)
        return
    if suite != "cpu":
        raise typer.BadParameter(f"{suite!r} is not a suite; known: cpu, h200", param_hint="--suite")
    if compare not in ("none", "transformers"):
        raise typer.BadParameter(
            f"{compare!r} is not a peer; known: transformers, none", param_hint="--compare"
        )
    llm = LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, **_engine_flags(device=device))
    run_cpu(llm, compare=compare == "transformers", repeats=repeats, json_file=json_file)


@app.command("up")
@with_flags
def up(
    up_config: UpConfig,
    engine: EngineConfig,
    model: Annotated[
        str | None, typer.Argument(help="hub id or folder; none: the bundled demo model")
    ] = None,
) -> None:
    """Serve a model on this machine: Redis, router, prefill and decode workers, until Ctrl-C."""
    import asyncio

    from baton.up import run_up

    sys.exit(asyncio.run(run_up(up_config, engine)))


@app.command("router")
@with_flags
def router(config: RouterConfig) -> None:
    """Serve the OpenAI API over the workers that Redis, or --worker, names."""
    from baton.services import run_router

    run_router(config)


@app.command("prefill")
@with_flags
def prefill(engine: EngineConfig, worker: WorkerConfig) -> None:
    """Serve prompts: compute them, sample their first token, hold their KV until a decode worker has it."""
    from baton.services import run_worker

    sys.exit(run_worker(engine, worker, ["prefill"]))


@app.command("decode")
@with_flags
def decode(
    engine: EngineConfig,
    worker: WorkerConfig,
    also_prefill: Annotated[bool, typer.Option(help="serve prompts for other decode workers too")] = False,
) -> None:
    """Serve requests to their end: fetch the prompt's KV or compute it, and generate."""
    from baton.services import run_worker

    sys.exit(run_worker(engine, worker, ["decode", "prefill"] if also_prefill else ["decode"]))


def _engine_flags(**given: Any) -> dict[str, Any]:
    """Keep what differs from the defaults, checked by `EngineConfig`."""
    EngineConfig(**given)
    return given


def main() -> None:
    """Run the command; what Baton raises on purpose is shown as one line."""
    try:
        app()
    except BatonError as error:
        print(f"baton: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
