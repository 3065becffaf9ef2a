"""The sub-commands of `baton bench`. Heavy imports wait for the one that needs them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option, Typer

from baton.command import BenchCommands, BenchServeCommand, Command

bench = Typer(cls=BenchCommands, no_args_is_help=True, help="Measure, beside the peer or the physical floor.")

Json = Annotated[Path | None, Option("--json", help="also write the table to this file")]


@bench.command("offline", cls=Command)
def bench_offline(
    model: Annotated[str | None, Argument(help="hub id or folder; none: the bundled demo model")] = None,
    suite: Annotated[
        Literal["cpu", "h200"],
        Option(help="cpu: a crowd and one stream, here; h200: the recorded GPU workloads, random weights"),
    ] = "cpu",
    compare: Annotated[
        Literal["none", "transformers"], Option(help="transformers: run it beside, in suite cpu")
    ] = "none",
    device: Annotated[Literal["auto", "cpu", "cuda"], Option(help="where the model runs")] = "cpu",
    deterministic: Annotated[
        bool, Option("--deterministic", help="with --deterministic; in suite h200 beside the default")
    ] = False,
    repeats: Annotated[int, Option(min=1, help="timed runs; the median counts")] = 3,
    json_file: Json = None,
) -> None:
    """Offline throughput of a crowd of requests, and the speed of a single stream."""
    if suite == "h200":
        from baton.bench.h200 import MODELS, run, run_deterministic

        measure = run_deterministic if deterministic else run
        measure(MODELS, repeats=repeats, json_file=json_file)
        return
    from baton.bench.offline import run_cpu
    from baton.llm import LLM

    llm = LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, device=device, deterministic=deterministic)
    run_cpu(llm, compare=compare == "transformers", repeats=repeats, json_file=json_file)


@bench.command("serve", cls=BenchServeCommand)
def bench_serve(
    url: Annotated[str, Option("--url", "--base-url", envvar="BATON_URL", help="the server")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, Option(help="whom to ask; none: the first model that the server names")] = None,
    api_key: Annotated[str | None, Option(envvar="BATON_API_KEY", help="key to send; of several, the first")] = None,
    rate: Annotated[
        list[float],
        Option(
            *("--rate", "--request-rate"),
            min=0.001,
            metavar="<float>...",
            help="requests a second, Poisson; inf: all at once; several make a sweep",
        ),
    ] = [math.inf],  # noqa: B006
    num_prompts: Annotated[int, Option(min=1, help="requests of each rate")] = 64,
    max_concurrency: Annotated[int | None, Option(min=1, help="most requests at once; none: as they come")] = None,
    input_len: Annotated[tuple[int, int], Option(help="shortest and longest prompt, tokens")] = (50, 1000),
    output_len: Annotated[tuple[int, int], Option(help="shortest and longest answer, tokens")] = (20, 200),
    trace: Annotated[Path | None, Option(help="JSON lines of timestamp, input_length, output_length, hash_ids")] = None,
    trace_speed: Annotated[float, Option(min=0.001, help="how many times as fast as recorded")] = 1.0,
    vocab: Annotated[int, Option(min=11, help="token ids are drawn below this")] = 4000,
    seed: Annotated[
        str | None,
        Option(help="of lengths, tokens and arrivals; none: another one each time, so that nothing is cached"),
    ] = None,
    save_result: Annotated[bool, Option("--save-result", help="write a file a rate, in vLLM's JSON form")] = False,
    save_detailed: Annotated[bool, Option("--save-detailed", help="with an entry a request")] = False,
    result_dir: Annotated[Path, Option(help="where the files go")] = Path(),
    result_filename: Annotated[str | None, Option(help="none: made of rate, model and time")] = None,
) -> None:
    """An open loop of requests against a running server: throughput, TTFT, TPOT, ITL; ends with 1 if one is lost."""
    import asyncio
    import secrets

    from baton.bench import loads, serve
    from baton.talk import first_key

    server = serve.Server(url=url, api_key=first_key(api_key), model=model, max_concurrency=max_concurrency)
    seed = seed or secrets.token_hex(4)

    async def measure() -> int:
        name, max_len = await serve.served_model(server)
        if trace is not None:
            all_loads = [
                loads.read_trace(trace, num_prompts, speed=trace_speed, max_len=max_len, vocab=vocab, seed=seed)
            ]
        else:
            lengths = {"input_len": input_len, "output_len": output_len}
            all_loads = [
                loads.poisson(each, num_prompts, **lengths, vocab=vocab, seed=f"{seed}/{i}")
                for i, each in enumerate(rate)
            ]
        results = await serve.run(server, name, all_loads, seed=seed)
        if save_result or save_detailed:
            serve.Files(folder=result_dir, name=result_filename, detailed=save_detailed).save(
                results, server, name, seed
            )
        return sum(result.num_failed for result in results)

    sys.exit(1 if asyncio.run(measure()) else 0)


@bench.command("router", cls=Command)
def bench_router(
    streams: Annotated[int, Option(min=1, help="live streams at once")] = 1000,
    rate: Annotated[float, Option(min=1, help="requests a second of the second part")] = 200.0,
    seconds: Annotated[float, Option(min=1, help="length of each part")] = 10.0,
    json_file: Json = None,
) -> None:
    """What the router adds, with a fake worker, beside a direct connection to that worker."""
    from baton.bench.router import run

    run(streams=streams, rate=rate, seconds=seconds, json_file=json_file)


@bench.command("transfer", cls=Command)
def bench_transfer(
    rounds: Annotated[int, Option(min=1, help="rounds of each; the median counts")] = 7,
    device: Annotated[Literal["cpu", "cuda"], Option(help="where the KV lies")] = "cpu",
    json_file: Json = None,
) -> None:
    """KV transfer, all checks on, beside two bare ZeroMQ sockets, taken in turn."""
    from baton.bench.transfer import run

    run(rounds=rounds, device=device, json_file=json_file)


@bench.command("kernels", cls=Command)
def bench_kernels(
    only: Annotated[
        list[str] | None, Option(metavar="OP", help="this operation alone; repeat for more; none: all")
    ] = None,
    write: Annotated[bool, Option("--write", help="put the table into kernels/README.md")] = False,
    sweep: Annotated[bool, Option("--sweep", help="instead: time other launches of the attention kernels")] = False,
    json_file: Json = None,
) -> None:
    """Every kernel on this GPU: achieved, share of the copy or matrix peak, beside torch and what else is installed."""
    from baton.bench.kernels.suite import run, run_sweep

    if sweep:
        run_sweep()
        return
    sys.exit(1 if run(only or [], write=write, json_file=json_file) else 0)
