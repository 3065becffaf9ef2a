"""The ways to load weights that `load_format` names, and what stands for those of vLLM that are not here. No torch."""

from __future__ import annotations

from baton.errors import ModelLoadError

LOAD_FORMATS = ("auto", "safetensors", "dummy")
_SAME_FILES = "auto reads the same safetensors files, in parallel and straight into the parameters"
_PICKLED = (
    "unpickling runs code from the file, so weights are read from safetensors alone: convert them once, where you trust "
    "them, with AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)"
)
_ELSEWHERE = {
    "pt": _PICKLED,
    "npcache": _PICKLED,
    "hf": _SAME_FILES,
    "mistral": "Mistral's consolidated files are not read: give the same model with config.json and model*.safetensors, which auto reads",
    "fastsafetensors": _SAME_FILES,
    "instanttensor": _SAME_FILES,
    "runai_streamer": f"{_SAME_FILES}; a bucket is to be mounted, or copied to a folder first",
    "runai_streamer_sharded": f"{_SAME_FILES}; a bucket is to be mounted, or copied to a folder first",
    "tensorizer": "its files hold a model of vLLM's own: give the checkpoint that they were made from",
    "sharded_state": "its files hold the parts of one layout of vLLM's: give the checkpoint that they were made from",
    "gguf": "GGUF is not read: give the model that the file was made from, with config.json and safetensors",
    "bitsandbytes": "a quantized checkpoint says so in its config.json and is read with auto; none is made at loading",
    "modelexpress": _SAME_FILES,
}
"""vLLM's other names, and what to do instead."""


def check_load_format(name: str) -> None:
    """Refuse a way to load that is not here.

    Raises:
        ModelLoadError: says what stands for it.
    """
    if name in LOAD_FORMATS:
        return
    ways = f"Give one of {', '.join(LOAD_FORMATS)} (--load-format)."
    if name in _ELSEWHERE:
        raise ModelLoadError(f"load_format={name!r} is not served: {_ELSEWHERE[name]}. {ways}")
    raise ModelLoadError(f"load_format={name!r} is not known. {ways}")
