"""A package with logits processors, installed as pip would leave it: a module, and metadata that names its entry points."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
"""Processors, some of which fail."""


class Shift:
    """Takes the token `by` places behind the likeliest, and never the last one again."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self.device = device

    @classmethod
    def validate_params(cls, params):
        by = (params.extra_args or {}).get("by")
        if not isinstance(by, int):
            raise ValueError(f"by={by!r} is no number")

    def new_req_logits_processor(self, params):
        by = params.extra_args["by"]

        def process(prompt_ids, output_ids, logits):
            before = output_ids[-1] if output_ids else prompt_ids[-1]
            changed = logits.roll(by + len(output_ids))
            changed[before] = -float("inf")
            return changed

        return process


class Breaks:
    """Raises after some tokens."""

    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def new_req_logits_processor(self, params):
        after = params.extra_args["after"]

        def process(output_ids, logits):
            if len(output_ids) >= after:
                raise RuntimeError("it broke")
            return logits

        return process


class Numbers(Breaks):
    """Returns what is no tensor."""

    def new_req_logits_processor(self, params):
        return lambda output_ids, logits: logits.cpu().numpy()
'''


def install(folder: Path) -> Path:
    """Put the distribution into a folder, which then belongs on the path of who is to have it."""
    info = folder / "shifty-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "shifty.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shifty\nVersion: 1.0\n")
    names = "shift = shifty:Shift\nbreaks = shifty:Breaks\nnumbers = shifty:Numbers\nmissing = shifty:Missing\n"
    (info / "entry_points.txt").write_text(f"[baton.logits_processors]\n{names}")
    return folder
