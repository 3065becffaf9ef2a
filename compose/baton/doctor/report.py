"""What `baton doctor` tells: lines for a person, or one JSON object for a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.doctor.advice import Advice
from baton.doctor.figures import Figures
from baton.doctor.finding import Finding
from baton.doctor.model_cost import ModelCost
from baton.doctor.prediction import KV_SHARE, PRODUCT_SHARE, WEIGHTS_SHARE, fit, predicted_steps, step_times
from baton.doctor.reasons import reasons, verdict


@dataclass(slots=True)
class Report:
    """Everything that was found, in the order in which it is told."""

    findings: list[Finding] = field(default_factory=list)
    links: dict[str, float] = field(default_factory=dict)
    """GB/s of KV by transport."""
    figures: Figures | None = None
    model: ModelCost | None = None
    advice: Advice | None = None

    @property
    def num_broken(self) -> int:
        """Findings that keep Baton from serving here."""
        return sum(finding.level == "broken" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads."""
        whole: dict[str, Any] = {
            "findings": [finding.as_json() for finding in self.findings],
            "links_gb_per_s": self.links,
            "device": None if self.figures is None else self.figures.as_json(),
        }
        if self.model is not None and self.figures is not None:
            whole["model"] = _model_json(self.model, self.figures)
        if self.advice is not None:
            whole["traffic"] = _advice_json(self.advice)
        return whole

    def model_lines(self) -> Iterator[str]:
        """Tell what the model does on the device."""
        if self.model is None or self.figures is None:
            return
        model, figures = self.model, self.figures
        there = fit(model, figures)
        yield ""
        yield f"{model.name} on {figures.name} ({figures.source})"
        kv = f"{model.kv_token_nbytes / 1024:g} KiB of KV a token"
        if there.num_blocks == 0:
            return
        yield f"  weights {there.weights_gib:.1f} GiB, {kv}, {there.num_blocks:,} blocks: {there.num_tokens:,} tokens fit"
        decode, prompts = predicted_steps(step_times(model, figures), model.max_model_len)
        yield f"  decode   {_ms(decode, 'rows')} at 1,024 tokens each"
        yield f"  prompts  {_ms(prompts, 'tokens')}"
        yield (
            f"  predicted: weights read at {WEIGHTS_SHARE:.0%} of {figures.memory_gbps:,.0f} GB/s, KV at {KV_SHARE:.0%}, products "
            f"at {PRODUCT_SHARE:.0%} of {figures.product_tflops:,.3g} TFLOP/s"
        )

    def advice_lines(self) -> Iterator[str]:
        """Tell which layout suits the traffic."""
        if (advice := self.advice) is None:
            return
        traffic, site = advice.traffic, advice.site
        yield ""
        yield f"{traffic.name}; {site.num_devices} x {site.figures.name}"
        yield f"good: {advice.targets}; simulated"
        yield f"  {'':<34}{'good':>6}{'TTFT p50':>10}{'p99':>8}{'gap p99':>9}{'longest':>9} ms"
        for option in advice.options:
            yield (
                f"  {option.name:<34}{option.share:>6.0%}{option.ttft_p50_ms:>10,.0f}{option.ttft_p99_ms:>8,.0f}"
                f"{option.gap_p99_ms:>9,.1f}{option.gap_max_ms:>9,.0f}"
            )
        yield ""
        yield verdict(advice)
        for reason in reasons(advice):
            yield f"- {reason}"


def _ms(times: dict[int, float], unit: str) -> str:
    shown = ", ".join(f"{size:,}: {ms:,.0f}" if ms >= 100 else f"{size:,}: {ms:.3g}" for size, ms in times.items())
    return f"{unit} {shown} ms"


def _model_json(model: ModelCost, figures: Figures) -> dict[str, Any]:
    there, times = fit(model, figures), step_times(model, figures)
    decode, prompts = predicted_steps(times, model.max_model_len)
    return {
        "name": model.name,
        "weights_bytes": model.weights_nbytes,
        "kv_bytes_per_token": model.kv_token_nbytes,
        "blocks": there.num_blocks,
        "tokens": there.num_tokens,
        "decode_ms_by_rows": decode,
        "prompt_ms_by_tokens": prompts,
        "step_times_s": {name: getattr(times, name) for name in times.__struct_fields__},
    }


def _advice_json(advice: Advice) -> dict[str, Any]:
    return {
        "name": advice.traffic.name,
        "rate": advice.traffic.rate,
        "input_len": advice.traffic.input_len,
        "output_len": advice.traffic.output_len,
        "ttft_target_ms": advice.targets.ttft_ms,
        "itl_target_ms": advice.targets.itl_ms,
        "devices": advice.site.num_devices,
        "link_gb_per_s": advice.site.link_gbps,
        "options": [option.as_json() for option in advice.options],
        "highest_rate": dict(advice.highest),
        "disaggregation_pays": advice.pays,
        "verdict": verdict(advice),
        "reasons": list(reasons(advice)),
    }


def told(findings: Sequence[Finding]) -> str:
    """Sum findings up."""
    broken = sum(finding.level == "broken" for finding in findings)
    notes = sum(finding.level == "note" for finding in findings)
    if broken:
        return f"{broken} broken, marked X"
    return f"nothing is broken; {notes} to note, marked !" if notes else "all is well"
