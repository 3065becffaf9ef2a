"""What `baton doctor` does: look, measure, predict, advise; each step told as soon as it is done."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from baton.bench.goodput import Targets
from baton.bench.loads import check_lengths
from baton.doctor.advice import Site, advise
from baton.doctor.figures import Figures, planned
from baton.doctor.finding import Finding
from baton.doctor.host import check_host
from baton.doctor.model_cost import ModelCost, read_model
from baton.doctor.prediction import fit
from baton.doctor.report import Report, told
from baton.doctor.software import check_gpus, check_software, has_torch
from baton.doctor.traffic import Traffic, drawn, recorded
from baton.errors import ConfigError
from baton.logs import LogConfig, setup_logs

_WIDTH, _TEXT_AT = 100, 13
_HOST_LINK_GBPS = 4.0
"""Of KV over sockets of one host, where no better link is known or measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked."""

    model: str | None = None
    plan: str | None = None
    """A device of the table, in place of this machine."""
    num_devices: int | None = None
    link_gbps: float | None = None
    rate: float | None = None
    input_len: tuple[int, int] = (512, 3584)
    output_len: tuple[int, int] = (64, 448)
    trace: Path | None = None
    targets: Targets = field(default_factory=Targets)
    redis_url: str | None = None
    port: int = 8000
    measures: bool = True
    as_json: bool = False

    def __post_init__(self) -> None:
        check_lengths("input_len", self.input_len)
        check_lengths("output_len", self.output_len)


def examine(asked: Questions) -> int:
    """Tell all of it; return the command's status: 1 where something is broken.

    Raises:
        ConfigError: what is asked for does not exist.
    """
    examination = _Examination(asked)
    if asked.plan is None:
        examination.look()
    else:
        examination.report.figures = planned(asked.plan)
    examination.predict()
    examination.advise()
    if asked.as_json:
        print(json.dumps(examination.report.as_json(), indent=1))
    return 1 if examination.report.num_broken else 0


class _Examination:
    def __init__(self, asked: Questions) -> None:
        self._asked = asked
        self.report = Report()
        self._num_gpus = 0

    def look(self) -> None:
        """Look at this machine, and measure it."""
        asked = self._asked
        self._find(check_software())
        self._find(check_host(asked.port, asked.redis_url))
        if has_torch():
            self._find(check_gpus())
            if asked.measures:
                self._measure()
        self._say(["", told(self.report.findings)])

    def _measure(self) -> None:
        import torch

        from baton.doctor.measuring import measure_figures, measure_links

        setup_logs("doctor", LogConfig(log_level="error"))
        self._num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        try:
            figures = self.report.figures = measure_figures()
        except RuntimeError as error:  # torch's, of memory that others hold
            reason = str(error).splitlines()[0][:200]
            self._find([Finding("note", "device", f"cannot be measured: {reason}.", "Stop what else runs there.")])
        else:
            speeds = f"memory {figures.memory_gbps:,.3g} GB/s, products {figures.product_tflops:,.3g} TFLOP/s"
            self._find([Finding("ok", "device", f"{figures.name}: {speeds}")])
        for finding, transport, gbps in measure_links():
            self._find([finding])
            self.report.links[transport] = gbps

    def predict(self) -> None:
        """Count the model, and predict its steps."""
        asked, figures = self._asked, self.report.figures
        if figures is None:
            return
        model = self.report.model = read_model(asked.model, width=2 if figures.is_gpu else 4)
        self._say(self.report.model_lines())
        if (there := fit(model, figures)).num_blocks == 0:
            text = (
                f"weights of {there.weights_gib:.1f} GiB do not fit the {figures.memory_gib:.0f} GiB of {figures.name}."
            )
            self._find([Finding("broken", "model", text, "Take a larger device or a smaller model.")])

    def advise(self) -> None:
        """Find the layout for a traffic, if one is asked about."""
        model, figures = self.report.model, self.report.figures
        if (self._asked.rate is None and self._asked.trace is None) or self.report.num_broken:
            return
        if model is None or figures is None:
            raise ConfigError(
                "a traffic needs a device: leave out --no-measure, install torch, or name one with --plan."
            )
        traffic = self._traffic(model)
        self.report.advice = advise(self._site(model, figures), traffic, self._asked.targets)
        self._say(self.report.advice_lines())

    def _traffic(self, model: ModelCost) -> Traffic:
        asked = self._asked
        if asked.trace is not None:
            return recorded(asked.trace, model.max_model_len, rate=asked.rate)
        assert asked.rate is not None
        if asked.input_len[1] + asked.output_len[1] > model.max_model_len:
            raise ConfigError(
                f"prompts and answers of {asked.input_len[1]} + {asked.output_len[1]} tokens exceed "
                f"the model's context of {model.max_model_len}. Lower --input-len or --output-len."
            )
        return drawn(asked.rate, asked.input_len, asked.output_len)

    def _site(self, model: ModelCost, figures: Figures) -> Site:
        asked = self._asked
        count = asked.num_devices or (2 if asked.plan else max(1, self._num_gpus))
        measured = max(self.report.links.items(), key=lambda link: link[1], default=("", 0.0))
        if asked.link_gbps is not None:
            link, gbps = "the link", asked.link_gbps
        elif measured[1]:
            link, gbps = f"{measured[0]}, as measured,", measured[1]
        elif figures.neighbour_gbps:
            link, gbps = "NVLink", figures.neighbour_gbps
        else:
            link, gbps = "the host's memory", _HOST_LINK_GBPS
        return Site(model=model, figures=figures, num_devices=count, link_gbps=gbps, link=link)

    def _find(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.report.findings.append(finding)
            self._say([finding.line()])

    def _say(self, lines: Iterable[str]) -> None:
        if not self._asked.as_json:
            for line in lines:
                print(_wrapped(line), flush=True)


def _wrapped(line: str) -> str:
    """Break a long line, what follows indented under it."""
    indent = " " * (_TEXT_AT if line[:2] in ("  ", "! ", "X ") else 2)
    return (
        "\n".join(textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False))
        if len(line) > _WIDTH
        else line
    )
