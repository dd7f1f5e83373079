"""Train the demonstration model from scratch on the CPU.

    python examples/train-demo-model/train.py --out examples/demo-model
    python examples/train-demo-model/train.py --out examples/demo-model --evaluate

The first command writes the model, the second one only asks it questions. On a machine that does
other work too, OMP_WAIT_POLICY=passive in the environment keeps the threads from spinning.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import Conversation, conversations, revision
from evaluation import evaluate
from tokenization import (
    END,
    NO_LOSS,
    PAD,
    VOCABULARY,
    Example,
    build_tokenizer,
    encode,
    save_tokenizer,
    token_id,
)
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20
POOL = 512  # conversations that are sorted by length together
WARM_UP = 100
REPORT = 50
REVISION_SCALE = 0.3  # learning rates of the second part, relative to the first


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with about two and a half million weights."""
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Conversation], limit: int
) -> Iterator[list[Example]]:
    """Batches of similar length, each with at most `limit` tokens after padding."""
    rng = random.Random(SEED)
    while True:
        pool = [encode(tokenizer, next(stream)) for _ in range(POOL)]
        pool.sort(key=lambda example: len(example.ids) + rng.random() * 8)
        groups: list[list[Example]] = [[]]
        for example in pool:
            longest = max(len(other.ids) for other in [*groups[-1], example])
            if longest * (len(groups[-1]) + 1) > limit:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from groups


def batch_loss(model: LlamaForCausalLM, batch: list[Example], pad: int) -> torch.Tensor:
    """The mean loss over the assistant's tokens.

    Padding is on the right, where causal attention never looks, so no mask is needed. Scores are
    computed only for the positions that count, to save time.
    """
    width = max(len(example.ids) for example in batch)
    ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in batch])
    labels = torch.tensor([e.labels + [NO_LOSS] * (width - len(e.labels)) for e in batch])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    counts = targets != NO_LOSS
    return cross_entropy(model.lm_head(hidden[counts]), targets[counts])


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which learns faster here, and AdamW for everything else."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        inside = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inside else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=5e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """The learning rate relative to its peak: a short warm-up, then down to zero in a line."""
    warm_up = min(WARM_UP, steps // 10)
    return min((step + 1) / warm_up, (steps - step) / (steps - warm_up), 1.0)


def train(
    model: LlamaForCausalLM, stream: Iterator[list[Example]], steps: int, scale: float = 1.0
) -> None:
    """Train for a number of steps, with learning rates scaled, and print how it goes."""
    pad = int(model.config.pad_token_id or 0)
    optims = optimizers(model)
    peaks = [optim.param_groups[0]["lr"] * scale for optim in optims]
    began, seen, total = time.monotonic(), 0, 0.0
    for step in range(steps):
        batch = next(stream)
        loss = batch_loss(model, batch, pad)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * rate(step, steps)
            optim.step()
            optim.zero_grad()
        seen += sum(len(example.ids) for example in batch)
        total += loss.item()
        if (step + 1) % REPORT == 0:
            spent = time.monotonic() - began
            line = f"step {step + 1}/{steps}  loss {total / REPORT:.4f}  {seen / 1e6:.2f}M tokens"
            print(f"{line}  {spent / 60:.1f} min", flush=True)
            total = 0.0


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bfloat16, file by file in one move each, so readers see whole files."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".new-") as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        save_tokenizer(tokenizer, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            os.replace(path, out / path.name)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the demonstration model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=2400, help="steps of the first part")
    parser.add_argument("--revision-steps", type=int, default=400, help="steps of the second part")
    parser.add_argument("--revise-only", action="store_true", help="start from the saved model")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens in one step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--evaluate", action="store_true", help="only ask the model questions")
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    return parser.parse_args()


def main() -> None:
    """Train and save, or evaluate."""
    args = options()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        raise SystemExit(0 if evaluate(args.out, verbose=args.verbose) else 1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(SEED)
    if not args.revise_only:
        model = build_model(tokenizer)
        print(f"{sum(weight.numel() for weight in model.parameters()):,} weights", flush=True)
        train(model, batches(tokenizer, conversations(SEED), args.batch_tokens), args.steps)
        save(model, tokenizer, args.out)
    # The second part starts from the saved weights, so that it can be run alone with one result.
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    stream = batches(tokenizer, revision(SEED + 1), args.batch_tokens)
    train(model, stream, args.revision_steps, REVISION_SCALE)
    save(model, tokenizer, args.out)
    print(f"saved to {args.out}")


if __name__ == "__main__":
    main()
