"""Compile what a model runs for a GPU that is not here; print each kernel, its bytes of shared memory, and when it was compiled.

    python tests/engine/compile_for.py 90

Triton's compiler needs no device, only the name of one: its driver is replaced by one that names it, tensors stay on
the CPU, and every launch stops after it has compiled. After the start come operations as requests bring them: what
is compiled only then, a request would wait for.
"""

import dataclasses
import sys
from typing import Any
from unittest import mock

import torch

with mock.patch("torch.cuda.is_available", return_value=True):
    import baton.kernels.launch

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from baton.engine import compile_check
from baton.engine.compile_check import KernelShapes, compile_kernels
from baton.kernels import decode_attention, invariant_attention
from baton.kernels.attention import paged_attention
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.few_rows_linear import few_rows_linear
from baton.kernels.join_attention import join_attention
from baton.kernels.kv_write import kv_write
from baton.kernels.launch_table import launches_on
from baton.kernels.moe import moe
from baton.kernels.moe_routing import Routing, route
from baton.kernels.moe_weights import ExpertWeights
from baton.kernels.rotary import rotary_kv_write
from baton.kernels.sample import derive_keys, logprobs, sample
from baton.kernels.sampling_batch import SamplingBatch
from baton.kernels.token_counts import count_tokens
from baton.models.spec import MoESpec
from baton.protocol import MAX_LOGPROBS

CAPABILITY = int(sys.argv[1])
LLAMA_8B = KernelShapes(
    dtype=torch.bfloat16,
    block_size=16,
    max_model_len=4096,
    max_num_seqs=256,
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rotations=((128, False),),
    writes_unrotated=False,
    has_rms_norm=True,
    has_head_norms=True,
    gate="silu",
    windows=(None,),
    soft_cap=None,
    has_slopes=False,
    deterministic=False,
)
OPT_8B = dataclasses.replace(LLAMA_8B, rotations=(), writes_unrotated=True, has_rms_norm=False, gate=None)
MIXTRAL = MoESpec(8, Routing(2, renormalized=True), 14_336)
WIDE = dataclasses.replace(LLAMA_8B, head_dim=256, rotations=((256, False),), windows=(4096,), soft_cap=50.0)


class NamedDevice:
    """What Triton asks its driver for."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


run = JITFunction.run
compiled: set[str] = set()
when = "start"


def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    if kernel.hash not in compiled:
        compiled.add(kernel.hash)
        print(self.__name__, kernel.metadata.shared, when)
    return kernel


def attention_only(shapes, device):
    return [operation for operation in operations(shapes, device) if operation[0] == "paged_attention"]


def unaligned(*shape, dtype=torch.int64):
    """Zeros that do not begin at a multiple of 16 bytes, as parts of one packed array may not."""
    return torch.zeros(8 + torch.Size(shape).numel(), dtype=dtype)[1:-7].view(shape)


def draw_as_asked():
    logits, ones = torch.zeros(3, LLAMA_8B.vocab_size), torch.ones(3)
    counts = torch.zeros(3, LLAMA_8B.vocab_size, dtype=torch.int32)
    at = torch.arange(3)
    plain = SamplingBatch(ones, ones.int(), ones, ones, derive_keys(at, at, at))
    for flag in ("any_min_p", "any_top_k", "any_top_p", "all_greedy"):
        flags: dict[str, Any] = {flag: True}
        sample(logits, dataclasses.replace(plain, **flags))
    for num_entries in (1, 3, 16):
        ids = torch.zeros(num_entries, dtype=torch.int64)
        biased = dataclasses.replace(plain, bias_rows=ids, bias_token_ids=ids, bias_values=ids.float())
        sample(logits, biased)
    penalties: dict[str, Any] = {f"{name}_penalty": ones for name in ("repetition", "presence", "frequency")}
    sample(logits, dataclasses.replace(plain, counts=counts, count_rows=unaligned(3), **penalties))
    count_tokens(counts, unaligned(3), at)
    for num_top in range(MAX_LOGPROBS + 1):
        logprobs(logits, at, num_top)


def attend_as_asked(shapes):
    cache = torch.zeros(4, 2, 2, 16, shapes.num_kv_heads, shapes.head_dim, dtype=shapes.dtype)[:, 0]
    for num_decodes in (1, 2, 9, 100, 256):
        q = torch.zeros(num_decodes, shapes.num_heads, shapes.head_dim, dtype=shapes.dtype)
        lens = torch.full((num_decodes,), 30, dtype=torch.int32)
        table = torch.zeros(num_decodes, shapes.max_model_len // 16, dtype=torch.int32)[:, :2]
        starts = torch.arange(num_decodes + 1, dtype=torch.int32)
        batch = AttentionBatch(
            table, starts, lens, unaligned(num_decodes), num_decodes, [1] * num_decodes, lens.tolist()
        )
        paged_attention(q, cache, batch, scale=1.0)
    # after a prefix of 515 tokens: rows of the library's sums, whose heads come before queries in memory
    o, out = q[:5], torch.empty_like(q[:5])
    sums = torch.zeros(shapes.num_heads, 512).transpose(0, 1)[3:8]
    joined = join_attention(o, sums, o, sums, out)
    join_attention(out, joined, o, sums, out)
    join_attention(out, joined, o, sums[1:], out)
    k = torch.zeros(3, shapes.num_heads + 2 * shapes.num_kv_heads, shapes.head_dim, dtype=shapes.dtype)
    q, k, v = k.split_with_sizes([shapes.num_heads, shapes.num_kv_heads, shapes.num_kv_heads], 1)
    norm = torch.zeros(shapes.head_dim, dtype=shapes.dtype)
    turns = torch.zeros(9, 2, shapes.head_dim // 2)
    rotary_kv_write(q, k, v, turns, unaligned(3), cache, unaligned(3), q_norm=norm, k_norm=norm, eps=1e-6)
    kv_write(k, v, cache, unaligned(3))


def multiply_as_asked(shapes):
    """Multiply as the layers and the output layer of an 8B model and of one with an odd vocabulary do."""
    if launches_on(torch.device("cpu")).few_rows is None:
        return
    hidden, inner = shapes.hidden_size, shapes.intermediate_size
    layers = [(6144, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)]
    for num_rows in (1, 2, 17, 64):
        for num_outputs, num_inputs in layers:
            weight = torch.empty(num_outputs, num_inputs, dtype=shapes.dtype)
            few_rows_linear(torch.empty(num_rows, num_inputs, dtype=shapes.dtype), weight)
        weight = torch.empty(shapes.vocab_size, hidden, dtype=shapes.dtype)
        few_rows_linear(torch.empty(num_rows, hidden, dtype=shapes.dtype), weight, None, torch.float32)


def mix_as_asked(shapes):
    """Choose experts for steps of several sizes, and go through them; matrices of one expert stand for all."""
    up, down = torch.empty(2 * MIXTRAL.size, shapes.hidden_size), torch.empty(shapes.hidden_size, MIXTRAL.size)
    experts = ExpertWeights(*(each.to(shapes.dtype).expand(MIXTRAL.num_experts, -1, -1) for each in (up, down)))
    for num_tokens in (1, 2, 7, 64, 65, 3000):
        weights, chosen = route(torch.empty(num_tokens, MIXTRAL.num_experts), MIXTRAL.routing)
        moe(torch.empty(num_tokens, shapes.hidden_size, dtype=shapes.dtype), chosen, weights, experts)


driver.set_active(NamedDevice())
JITFunction.run = compile_only
decide = baton.kernels.launch.on_triton
for module in list(sys.modules.values()):  # tensors of the CPU are taken for the GPU's
    if getattr(module, "on_triton", None) is decide:
        setattr(module, "on_triton", lambda x, op="": True)  # noqa: B010
mock.patch.multiple(decode_attention, num_sms=lambda device: 100).start()
mock.patch.multiple(invariant_attention, num_sms=lambda device: 100).start()
mock.patch("torch.cuda.get_device_capability", return_value=divmod(CAPABILITY, 10)).start()
for shapes in (dataclasses.replace(LLAMA_8B, experts=(MIXTRAL,)), dataclasses.replace(OPT_8B, has_sinks=True)):
    compile_kernels(shapes, torch.device("cpu"), "a GPU", allow_reference=False)
when = "request"
draw_as_asked()
attend_as_asked(LLAMA_8B)
multiply_as_asked(LLAMA_8B)
mix_as_asked(LLAMA_8B)
when = "start"
operations, compile_check._operations = compile_check._operations, attention_only
for shapes in (WIDE, dataclasses.replace(WIDE, dtype=torch.float32)):
    compile_kernels(shapes, torch.device("cpu"), "a GPU", allow_reference=False)
