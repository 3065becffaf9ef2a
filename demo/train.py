"""Train the demo model: `python -m demo.train --seed 1 --out DIR`, nine minutes on one H200.

The number of steps is an argument, never a clock's doing, and batch, order and initial weights follow from
the seed. At intervals the held-out questions are scored with the right answer as context (an answer is what
greedy decoding would say exactly when the likeliest token is right at each of its places), so scoring
costs one pass and no generation.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from demo.corpus import IGNORED, Batch, Corpus, empty_batch, tokenizer_texts
from demo.muon import Muon
from demo.network import Layout, Network, Shape
from demo.questions import make_questions
from demo.tokenizer import BOS, END, MAX_LEN, PAD, Encoder, load_encoder, save_tokenizer, train_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from baton.demo.questions import Question, format_table, score

MAX_DOCUMENTS = 127  # a row, on average; offsets have room for so many, which keeps one compiled shape


class Batches(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """The batch of each step, made in the processes of a `DataLoader`."""

    def __init__(self, tokenizer_folder: Path, seed: int, num_steps: int, rows: int, is_curriculum: bool) -> None:
        self._folder = tokenizer_folder
        self._seed = seed
        self._num_steps = num_steps
        self._rows = rows
        self._is_curriculum = is_curriculum
        self._corpus: Corpus | None = None

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._corpus is None:
            self._corpus = Corpus(load_encoder(self._folder), self._seed)
        progress = step / self._num_steps if self._is_curriculum else 1.0
        return tensors(self._corpus.batch(step, progress, self._rows))


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, targets, documents and the offsets of `Layout`."""
    rows, length = batch.tokens.shape
    numbers = batch.documents.astype(np.int64) + np.arange(rows)[:, None] * length
    starts = np.flatnonzero(np.diff(numbers.ravel(), prepend=-1))
    offsets = np.full(rows * MAX_DOCUMENTS + 1, rows * length, np.int32)
    assert len(starts) < len(offsets), f"{len(starts)} documents in {rows} rows"
    offsets[: len(starts)] = starts
    return (
        torch.from_numpy(batch.tokens),
        torch.from_numpy(batch.targets).long(),
        torch.from_numpy(batch.documents),
        torch.from_numpy(offsets),
    )


class Examiner:
    """Held-out questions packed once, scored whenever asked."""

    def __init__(self, corpus: Corpus, encoder: Encoder, seed: int, num: int, rows: int, device: torch.device) -> None:
        self.questions: list[Question] = make_questions(seed, num, encoder)
        self._device = device
        documents = [corpus.answer_only(question.conversation) for question in self.questions]
        self._batches: list[tuple[tuple[Tensor, ...], list[tuple[int, int, int]]]] = []
        waiting = list(enumerate(documents))[::-1]
        while waiting:
            batch = empty_batch(rows, encoder.special[PAD])
            spans = []
            for row in range(rows):
                used, number = 0, 0
                while waiting and used + len(waiting[-1][1].ids) <= MAX_LEN:
                    i, document = waiting.pop()
                    spans.append((i, row * MAX_LEN + used, len(document.ids)))
                    used = batch.place(row, used, number, document)
                    number += 1
                batch.documents[row, used:] = number
            self._batches.append((tensors(batch), spans))

    @torch.no_grad()
    def examine(self, network: Callable[..., tuple[Tensor, Tensor]]) -> list[bool]:
        """Mark each question."""
        marks = [False] * len(self.questions)
        for batch, spans in self._batches:
            tokens, targets, documents, offsets = (x.to(self._device) for x in batch)
            with torch.autocast(self._device.type, torch.bfloat16):
                _, hits = network(tokens, targets, Layout(documents, offsets))
            fine = (hits | (targets == IGNORED)).flatten().cpu().numpy()
            for i, start, size in spans:
                marks[i] = bool(fine[start : start + size].all())
        return marks


def rate(progress: float, warmup: float = 0.02, decay: float = 0.6) -> float:
    """The share of the full learning rate: a short warm-up, a plateau, then straight down to zero."""
    return min(1.0, progress / warmup, (1 - progress) / decay)


def save(network: Network, encoder: Encoder, folder: Path) -> None:
    """Write weights and configuration beside the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {
        "eos_token_id": encoder.special[END],
        "bos_token_id": encoder.special[BOS],
        "pad_token_id": encoder.special[PAD],
    }
    config = network.config(**ids)
    partial = folder / "model.safetensors.partial"
    save_file(network.checkpoint(), partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")


def train(arguments: argparse.Namespace) -> None:
    """Run the whole training and leave the checkpoint folder in `arguments.out`."""
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    start = time.monotonic()
    out: Path = arguments.out
    earlier: Path | None = arguments.start
    tokenizer = (
        Tokenizer.from_file(str(earlier / "tokenizer.json"))
        if earlier
        else train_tokenizer(tokenizer_texts(arguments.seed, 24_000))
    )
    save_tokenizer(tokenizer, out)
    encoder = load_encoder(out)
    print(f"tokenizer made in {time.monotonic() - start:.1f} s", flush=True)

    dataset = Batches(out, arguments.seed, arguments.steps, arguments.rows, is_curriculum=earlier is None)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=arguments.workers,
        prefetch_factor=8 if arguments.workers else None,
        pin_memory=device.type == "cuda",
    )
    batches: Iterator[tuple[Tensor, ...]] = iter(loader)  # the processes start now, while the rest is set up
    examiner = Examiner(
        Corpus(encoder, arguments.seed), encoder, arguments.seed, arguments.num_questions, arguments.rows, device
    )
    network = Network(Shape(num_layers=arguments.layers, hidden_size=arguments.hidden)).to(device)
    if earlier:
        network.load(load_file(earlier / "model.safetensors"))
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters on {device}", flush=True)
    model = torch.compile(network) if device.type == "cuda" else network
    matrices = [p for name, p in network.named_parameters() if name.startswith("layers.") and p.ndim == 2]
    others = [p for name, p in network.named_parameters() if not (name.startswith("layers.") and p.ndim == 2)]
    muon = Muon(matrices, arguments.lr, compiled=device.type == "cuda")
    adam = torch.optim.AdamW(
        others, lr=arguments.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"
    )

    window = time.monotonic()
    for step, batch in enumerate(batches):
        tokens, targets, documents, offsets = (x.to(device, non_blocking=True) for x in batch)
        with torch.autocast(device.type, torch.bfloat16):
            loss, hits = model(tokens, targets, Layout(documents, offsets))
        loss.backward()
        share = rate((step + 1) / (arguments.steps + 1))
        muon.lr = arguments.lr * share
        adam.param_groups[0]["lr"] = arguments.adam_lr * share
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        network.zero_grad(set_to_none=True)
        if (step + 1) % arguments.log_every == 0:
            taught = (targets != IGNORED).sum().item()
            seconds = (time.monotonic() - window) / arguments.log_every
            print(
                f"step {step + 1} loss {loss.item():.4f} hits {hits.sum().item() / taught:.4f} taught {taught} "
                f"{seconds * 1000:.0f} ms {tokens.numel() / seconds / 1e6:.2f} Mtok/s at {time.monotonic() - start:.0f} s",
                flush=True,
            )
            window = time.monotonic()
        if (step + 1) % arguments.examine_every == 0 and step + 1 < arguments.steps:
            save(network, encoder, out)
            marks = score(examiner.questions, examiner.examine(model))
            print("  " + "; ".join(f"{row.task.name} {row.accuracy:.2f}" for row in marks), flush=True)
            window = time.monotonic()
    save(network, encoder, out)
    with torch.no_grad():  # what is saved is what is scored
        for weight in network.parameters():
            weight.copy_(weight.bfloat16().float())
    print(format_table(score(examiner.questions, examiner.examine(model))), flush=True)
    print(f"done in {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--start", type=Path, help="go on from this checkpoint, without the curriculum")
    parser.add_argument("--steps", type=int, default=5600)
    parser.add_argument("--rows", type=int, default=24, help="rows of 4,096 tokens in a step")
    parser.add_argument("--lr", type=float, default=0.02, help="of Muon, for the layers' matrices")
    parser.add_argument("--adam-lr", type=float, default=0.003, help="of AdamW, for embeddings and norms")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 1))
    parser.add_argument("--num-questions", type=int, default=100, help="scored for each task")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--examine-every", type=int, default=500)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
