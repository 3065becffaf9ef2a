"""Why prefill and decode apart pay or lose, in plain sentences with their numbers."""

from __future__ import annotations

from collections.abc import Iterator

from baton.doctor.advice import Advice, rows_together, work
from baton.doctor.prediction import BLOCK_LEN, fit, step_times
from baton.doctor.simulation import Chunks

_MOST = 0.5
"""Share of good requests from which a layout is said to keep its promises at all."""


def verdict(advice: Advice) -> str:
    """Say what to do."""
    together, apart = advice.together, advice.apart
    if apart is None:
        return f"One device: prefill and decode apart lose here. Start `baton up {together.flags}`: {together.share:.0%} good."
    rates = [advice.highest[option.name] for option in (apart, together)]
    shown = " and ".join(f"{rate:.3g}" if rate else "no" for rate in rates)
    beside = f"{apart.share:.0%} good beside {together.share:.0%}; 90 % are good up to {shown} requests/s"
    if (apart if advice.pays else together).share < _MOST:
        return (
            f"No layout keeps these targets for most requests at this rate for long: apart {beside}. Add devices, take faster ones, or "
            f"loosen the targets."
        )
    if advice.pays:
        return f"Prefill and decode apart pay: {beside}. Start `baton up {apart.flags}`."
    return f"Prefill and decode apart do not pay: {beside}. Start `baton up {together.flags}`."


def reasons(advice: Advice) -> Iterator[str]:
    """Give the numbers behind it, those that speak against apart first."""
    yield from _one_device(advice)
    yield from _stalls(advice)
    yield from _link(advice)
    yield from _short_prompts(advice)
    yield from _loose_target(advice)
    yield from _ratio(advice)


def _one_device(advice: Advice) -> Iterator[str]:
    site = advice.site
    if site.num_devices > 1:
        return
    there = fit(site.model, site.figures)
    both = max(0.0, there.num_blocks - there.weights_gib * 2**30 / (site.model.kv_token_nbytes * BLOCK_LEN))
    yield (
        f"Both roles would share one device: a prompt's step and a decode step at the same time take as long as both; the "
        f"weights lie there twice ({there.weights_gib:.1f} GiB each), which leaves {both:,.0f} KV blocks of "
        f"{there.num_blocks:,}; and KV is copied besides. It is for trying the path, not for speed."
    )


def _stalls(advice: Advice) -> Iterator[str]:
    for option in (advice.apart, advice.together):
        if option is not None and option.stalls and option.share >= _MOST:
            yield (
                f"{option.name}: the longest gap is {option.gap_max_ms / 1e3:.1f} s, which a 99th percentile does not see: some "
                f"second tokens wait for the link, or for a place among the answers that keep the gap target."
            )


def _link(advice: Advice) -> Iterator[str]:
    site, traffic = advice.site, advice.traffic
    if site.num_devices < 2:
        return
    needed = advice.needed_gbps
    exposed_ms = 1e3 * traffic.input_len * site.model.kv_token_nbytes / (1e9 * site.link_gbps)
    line = (
        f"KV: {needed:.3g} GB/s at this rate, {site.kv_gbps:.3g} while a prompt is computed; {site.link} carries "
        f"{site.link_gbps:.3g}"
    )
    if site.link_gbps < needed:
        yield f"{line}: it cannot keep up, and every second token waits. Apart loses over this link."
    elif site.link_gbps < site.kv_gbps:
        yield f"{line}: slower than KV is made, so up to {exposed_ms:.0f} ms of a mean prompt's transfer come on top."
    else:
        yield f"{line}: it hides behind the computing."


def _short_prompts(advice: Advice) -> Iterator[str]:
    times, traffic, targets = step_times(advice.site.model, advice.site.figures), advice.traffic, advice.targets
    rows = rows_together(advice.site, traffic, targets.itl_ms)
    context = rows * int(traffic.input_len + traffic.output_len / 2)
    room = Chunks.within(targets.itl_ms / 1e3, times).most(times, rows, context, 0, 1)
    if room >= traffic.input_len:
        yield (
            f"Prompts are short: {traffic.input_len:.0f} tokens in the mean, and a step with {rows} running answers takes "
            f"{room:,} more within {targets.itl_ms:g} ms. Computed in between they disturb nobody."
        )


def _loose_target(advice: Advice) -> Iterator[str]:
    site, traffic, targets = advice.site, advice.traffic, advice.targets
    times = step_times(site.model, site.figures)
    needed = traffic.rate * traffic.input_len / site.num_devices
    mean = rows_together(site, traffic, targets.itl_ms)
    rows = min(256, round(mean + 2 * mean**0.5))  # as many as there are in busy moments
    context = rows * int(traffic.input_len + traffic.output_len / 2)
    alone_ms = 1e3 * times.seconds(mean, mean * context // rows)
    if alone_ms > targets.itl_ms:
        yield (
            f"The gap target is out of reach at this rate: a step of {mean} running answers alone takes {alone_ms:.1f} ms, with "
            f"no prompt beside it. Take a looser one, more devices, or faster ones."
        )
        return
    chunks = Chunks.within(targets.itl_ms / 1e3, times)
    tokens = chunks.most(times, rows, context, 1024, 1)
    rate = tokens / times.seconds(rows, context, tokens, tokens * (1024 + tokens))
    beside = (
        f"within {targets.itl_ms:g} ms, steps with {rows} running answers, in a busy moment, compute {rate:,.0f} prompt tokens "
        f"a second a device, and {needed:,.0f} come"
    )
    if rate > needed:
        yield f"The gap target is loose: {beside}. Mixed steps are enough."
    else:
        yield f"The gap target is tight: {beside}."


def _ratio(advice: Advice) -> Iterator[str]:
    itl_ms, rate = advice.targets.itl_ms, advice.traffic.rate
    prefill_s, decode_s, rows = work(advice.site, advice.traffic, itl_ms)
    yield (
        f"P:D: apart, prompts keep {rate * prefill_s:.2f} devices busy and answers {rate * decode_s:.2f} ({rows} at once within "
        f"{itl_ms:g} ms): {prefill_s / decode_s:.2f} prefill to 1 decode."
    )
