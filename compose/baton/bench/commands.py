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


@bench.command("embed", cls=Command)
def bench_embed(
    model: Annotated[str, Argument(help="hub id or folder of an embedding model")],
    compare: Annotated[
        Literal["none", "sentence-transformers"], Option(help="sentence-transformers: run it beside, on the CPU")
    ] = "none",
    device: Annotated[Literal["auto", "cpu", "cuda"], Option(help="where the model runs")] = "cpu",
    texts: Annotated[int, Option(min=1, help="texts, of mixed lengths up to half of the model's context")] = 256,
    repeats: Annotated[int, Option(min=1, help="timed runs; the median counts")] = 3,
    json_file: Json = None,
) -> None:
    """Vectors of texts of mixed lengths, in tokens a second."""
    from baton.bench.embed import run
    from baton.llm import LLM

    llm = LLM(model, enable_prefix_caching=False, device=device)
    run(llm, compare=compare != "none", num=texts, repeats=repeats, json_file=json_file)


@bench.command("serve", cls=BenchServeCommand)
def bench_serve(
    url: Annotated[str, Option("--url", "--base-url", envvar="BATON_URL", help="the server")] = "http://127.0.0.1:8000",
    beside: Annotated[str | None, Option(metavar="URL", help="a second server, sent the same; gives the ratio")] = None,
    together: Annotated[bool, Option("--together", help="ask both at the same time; else in turn")] = False,
    label: Annotated[list[str], Option(help="the server's name in tables; of the second too")] = ["server", "beside"],  # noqa: B006
    model: Annotated[str | None, Option(help="whom to ask; none: the first model that the server names")] = None,
    api_key: Annotated[str | None, Option(envvar="BATON_API_KEY", help="key to send; of several, the first")] = None,
    rate: Annotated[
        list[float],
        Option(
            *("--rate", "--request-rate"),
            min=0.001,
            metavar="<float>...",
            help="requests a second, Poisson; inf: all at once; several are measured one after another",
        ),
    ] = [math.inf],  # noqa: B006
    num_prompts: Annotated[int, Option(min=1, help="requests of each rate")] = 64,
    seconds: Annotated[
        float | None, Option(min=0.1, help="in place of a number: send for so long at each rate")
    ] = None,
    warm_up_s: Annotated[float, Option(min=0, help="before --seconds: sent at the same rate, not counted")] = 5.0,
    max_concurrency: Annotated[int | None, Option(min=1, help="most requests at once; none: as they come")] = None,
    input_len: Annotated[tuple[int, int], Option(help="shortest and longest prompt, tokens")] = (50, 1000),
    output_len: Annotated[tuple[int, int], Option(help="shortest and longest answer, tokens")] = (20, 200),
    prefixes: Annotated[int, Option(min=0, help="begin each prompt with one of so many long texts")] = 0,
    prefix_len: Annotated[int, Option(min=1, help="tokens of each of these")] = 1024,
    prefix_skew: Annotated[float, Option(min=0, help="the k-th of them comes as often as 1 / k ** skew says")] = 1.0,
    turns: Annotated[int, Option(min=1, help="conversations of so many turns, which hold the answers before")] = 1,
    turn_len: Annotated[tuple[int, int], Option(help="tokens that each later turn adds")] = (32, 256),
    think_s: Annotated[float, Option(min=0, help="mean pause before each later turn")] = 1.0,
    trace: Annotated[Path | None, Option(help="JSON lines of timestamp, input_length, output_length, hash_ids")] = None,
    trace_speed: Annotated[float, Option(min=0.001, help="how many times as fast as recorded")] = 1.0,
    ttft_target_ms: Annotated[float, Option(min=0, help="latest first token of a good request")] = 500.0,
    itl_target_ms: Annotated[
        list[float] | None,
        Option(
            min=0, metavar="<float>...", help="largest p99 of a good request's own gaps; several are judged at once"
        ),
    ] = None,
    sweep: Annotated[
        bool, Option("--sweep", help="search the highest rate with enough good, from the least --rate to the most")
    ] = False,
    sweep_runs: Annotated[int, Option(min=2, help="most runs of a search, for each target")] = 6,
    good_share: Annotated[float, Option(min=0.01, max=1, help="what is enough")] = 0.9,
    vocab: Annotated[int, Option(min=11, help="token ids are drawn below this")] = 4000,
    seed: Annotated[
        str | None,
        Option(help="of lengths, tokens and arrivals; none: another one each time, so that nothing is cached"),
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="JSON of all runs; adds to what is there of the same load")
    ] = None,
    save_result: Annotated[bool, Option("--save-result", help="write a file a rate, in vLLM's JSON form")] = False,
    save_detailed: Annotated[bool, Option("--save-detailed", help="with an entry a request")] = False,
    result_dir: Annotated[Path, Option(help="where the files go")] = Path(),
    result_filename: Annotated[str | None, Option(help="none: made of rate, model and time")] = None,
) -> None:
    """An open loop of requests against a running server: throughput, latencies, goodput; ends with 1 if one is lost."""
    import secrets

    from baton.bench import serve_plan, serve_run
    from baton.bench.loads import Shape, Span
    from baton.bench.serve_file import ServeFile, VllmFiles
    from baton.talk import first_key

    seed = seed or secrets.token_hex(4)
    asked = serve_plan.Asked(
        shape=Shape(
            input_len=input_len,
            output_len=output_len,
            vocab=vocab,
            num_prefixes=prefixes,
            prefix_len=prefix_len,
            prefix_skew=prefix_skew,
            num_turns=turns,
            turn_len=turn_len,
            think_s=think_s,
        ),
        span=Span(count=num_prompts) if seconds is None else Span(seconds=seconds, warm_up_s=warm_up_s),
        seed=seed,
        trace=trace,
        trace_speed=trace_speed,
    )
    plan = serve_run.Plan(
        load_at=asked.load_at,
        seed=seed,
        rates=rate,
        targets=serve_plan.targets(ttft_target_ms, itl_target_ms, sweep=sweep),
        search=serve_plan.search(rate, good_share) if sweep else None,
        num_runs=sweep_runs,
        together=together,
    )
    servers = serve_plan.servers((url, beside), label, model, first_key(api_key), max_concurrency)
    done = serve_run.run(plan, servers, ServeFile(out, asked.described()))
    if save_result or save_detailed:
        VllmFiles(folder=result_dir, name=result_filename, detailed=save_detailed).save(done.results, seed)
    sys.exit(1 if done.num_failed else 0)


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
    only: Annotated[
        Literal["tcp", "ipc", "shm", "shm_ring", "cuda_ipc"] | None, Option(help="this transport alone; none: all")
    ] = None,
    sockets: Annotated[int | None, Option(min=1, max=16, help="of a pair; none: as workers on this machine")] = None,
    frame_mib: Annotated[int | None, Option(min=1, max=64, help="MiB of a message; none: as workers")] = None,
    json_file: Json = None,
) -> None:
    """KV transfer, all checks on, beside two bare ZeroMQ sockets or a GPU's bare copy, taken in turn."""
    from baton.bench.transfer import run

    run(rounds=rounds, device=device, only=only, sockets=sockets, frame_mib=frame_mib, json_file=json_file)


@bench.command("load", cls=Command)
def bench_load(
    gib: Annotated[float, Option(min=0.25, help="GiB of weights to write and load")] = 1.0,
    shards: Annotated[int, Option(min=1, max=64, help="files that they are in")] = 4,
    rounds: Annotated[int, Option(min=1, help="rounds of each way; the median counts")] = 5,
    device: Annotated[Literal["cpu", "cuda"], Option(help="where they go")] = "cpu",
    folder: Annotated[Path | None, Option(help="where to write them; none: the system's folder for such")] = None,
    cold: Annotated[bool, Option("--cold", help="drop the files from the page cache before each round")] = False,
    json_file: Json = None,
) -> None:
    """Loading weights, beside plain reads of the same files by as many threads, taken in turn."""
    from baton.bench.load import run

    run(gib=gib, shards=shards, rounds=rounds, device=device, folder=folder, cold=cold).show(json_file)


@bench.command("kernels", cls=Command)
def bench_kernels(
    only: Annotated[
        list[str] | None, Option(metavar="OP", help="this operation alone; repeat for more; none: all")
    ] = None,
    write: Annotated[bool, Option("--write", help="put the table into kernels/README.md")] = False,
    sweep: Annotated[
        bool, Option("--sweep", help="instead: time other launches of attention, experts and quantized weights")
    ] = False,
    json_file: Json = None,
) -> None:
    """Every kernel on this GPU: achieved, share of the copy or matrix peak, beside torch and what else is installed."""
    from baton.bench.kernels.suite import run, run_sweep

    if sweep:
        run_sweep(only or [])
        return
    sys.exit(1 if run(only or [], write=write, json_file=json_file) else 0)
