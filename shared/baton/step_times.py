"""StepTimes: predict how long a step of a worker takes, from what it computes. Plain numbers: a worker learns them
(`step_learning`) and tells its routers.

    seconds = step + row * rows + context * tokens_read + chunk * (are there chunks)
            + token * chunk_tokens + full * max(0, rows + chunk_tokens - FULL) + pair * pairs

rows          sequences with one token to compute; `tokens_read` are those that they have before it, in all
chunk_tokens  of prompts' parts in the step
pairs         each chunk's tokens times those up to its end, which bounds its attention

Up to some `FULL` tokens a step reads the weights for longer than it multiplies by them: tokens are nearly free there. Of a
device that multiplies from the first token on, `token` is larger, and `full` small.

    times = LLAMA_8B_ON_H100
    times.seconds(rows=32, context=32 * 1024)                  # a decode step: 0.0078
    times.prompt_seconds(2048)                                 # a prompt alone: 0.052
    times.most_tokens(0.030, rows=32, context=64_000)          # a chunk beside them, within 30 ms

To learn those of a machine that is at hand, feed measured steps to `StepLearner.learn` and read `StepLearner.times`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

FULL = 256
"""Tokens, about, from which GPUs multiply for longer than they read: operations a second over bytes a second."""

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class StepTimes(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Seconds of each part of a step."""

    step: _Seconds
    """Of any step: it reads the weights."""
    row: _Seconds
    context: _Seconds
    """Of each token that a row reads."""
    chunk: _Seconds
    """Of there being chunks."""
    token: _Seconds
    full: _Seconds
    """Of each token beyond `FULL`."""
    pair: _Seconds

    def seconds(self, rows: int = 0, context: int = 0, tokens: int = 0, pairs: float = 0) -> float:
        """Predict a step; `tokens` and `pairs` are those of its chunks."""
        seconds = self.step + self.row * rows + self.context * context + self.full * max(0, rows + tokens - FULL)
        return seconds + self.chunk + self.token * tokens + self.pair * pairs if tokens else seconds

    def most_tokens(
        self,
        seconds: float,
        rows: int = 0,
        context: int = 0,
        *,
        tokens: int = 0,
        pairs: float = 0,
        start: int = 0,
        most: int = 8192,
    ) -> int:
        """Say how many more prompt tokens, of a sequence that has `start`, keep a step within so many seconds; 0 to `most`."""
        low, high = 0, most
        while low < high:
            num = (low + high + 1) // 2
            if self.seconds(rows, context, tokens + num, pairs + num * (start + num)) <= seconds:
                low = num
            else:
                high = num - 1
        return low

    def prompt_seconds(self, tokens: int, start: int = 0, chunk: int = 1024) -> float:
        """Predict how long a prompt takes that is computed alone, `start` tokens of it being cached, in chunks."""
        num_steps, end = max(-(-tokens // chunk), 1), start + tokens
        beyond = max(0, tokens - FULL * num_steps)
        # the sum over chunks of their tokens times those up to their end
        pairs = tokens * (start + end + min(chunk, tokens)) / 2
        return num_steps * (self.step + self.chunk) + self.token * tokens + self.full * beyond + self.pair * pairs

    def efficient_chunk(self, most: int = 8192, loss: float = 0.05) -> int:
        """Find the smallest chunk with which a prompt takes not much longer than in the largest one."""
        best = self.seconds(tokens=most) / most
        size = min(512, most)
        while size < most and self.seconds(tokens=size) / size > (1 + loss) * best:
            size = min(2 * size, most)
        return size

    def scaled(self, factor: float) -> StepTimes:
        """Return those of a device, or a model, that is slower by a factor."""
        return StepTimes(*(factor * value for value in msgspec.structs.astuple(self)))


LLAMA_8B_ON_H100 = StepTimes(5.9e-3, 16e-6, 43e-9, 0.5e-3, 4e-6, 20e-6, 0.28e-9)
"""Llama-3.1-8B in 16 bits, as measured: decode steps of 1, 8, 32, 128, 256 rows after 1k tokens take 5.6, 6.6, 7.8, 13.7 and
21.4 ms, prompts of 512, 2048 and 8192 tokens 12.8, 52.3 and 224 ms."""
