"""Grammars alone: the time that schemas take to compile and masks to fill, for a real vocabulary.

The vocabulary is trained on the spot, on the Python files of this environment, to 49152 tokens.
Every schema of tests/grammar/schemas.py is compiled in a process as the engine does, and followed
by tokens drawn at random; every mask is timed, from the token to its arrival here.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from container.grammar.client import GrammarClient
from container.grammar.forms import ANY_OBJECT, schema_answer
from container.grammar.protocol import ForkServerArgs, GrammarLimits
from container.grammar.shape import MessageShape, encode_shape
from tests.grammar.schemas import all_schemas

VOCABULARY = 49152
TRAINED_ON_BYTES = 30_000_000
END = "<|end|>"
TOKENS = 150


def train() -> Tokenizer:
    """A byte-level BPE vocabulary of names, words and code."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    files = sorted(Path(np.__file__).parents[1].rglob("*.py"), key=lambda file: file.stat().st_size)
    sizes = itertools.accumulate(file.stat().st_size for file in files)
    chosen = [f for f, size in zip(files, sizes, strict=True) if size < TRAINED_ON_BYTES]
    tokenizer.train_from_iterator((f.read_text(errors="ignore") for f in chosen), trainer)
    return tokenizer


def percentile(values: list[float], rank: float) -> float:
    """The nearest rank."""
    return sorted(values)[min(len(values) - 1, int(rank * len(values)))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    random = np.random.default_rng(parser.parse_args().seed)
    tokenizer = train()
    vocabulary = tokenizer.get_vocab_size()
    client = GrammarClient(ForkServerArgs(tokenizer.to_str(), vocabulary, [0], {}, GrammarLimits()))
    client.check()
    schemas = [schema for _, schema in all_schemas()]
    texts = [tokenizer.decode([token_id]) for token_id in range(vocabulary)]
    closing = np.array([any(c in text for c in '"}]') for text in texts]) * 3.0
    mask = np.zeros(-(-vocabulary // 32), np.int32)
    compiled, masks = [], []
    for schema in [ANY_OBJECT, *schemas]:
        started = time.perf_counter()
        text = encode_shape(MessageShape(answer=schema_answer(schema, "schema")))
        constraint = client.compile(text)
        client.wait(lambda c=constraint: c.is_ready, 60.0)
        compiled.append(time.perf_counter() - started)
        for _ in range(TOKENS):
            constraint.fill(mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocabulary]
            noise = closing + random.gumbel(size=vocabulary)
            started = time.perf_counter()
            constraint.accept(int(np.where(allowed, noise, -np.inf).argmax()))
            client.wait(lambda c=constraint: c.is_ready and c.is_advanced, 60.0)
            masks.append(time.perf_counter() - started)
            if constraint.is_complete or constraint.error:
                break
        constraint.close()
    client.close()
    print(f"{len(compiled)} schemas, vocabulary {vocabulary}, {len(masks)} masks")
    for name, seconds, unit in (
        ("check and compile, ms", compiled, 1e3),
        ("token and mask, us", masks, 1e6),
    ):
        row = [statistics.median(seconds), percentile(seconds, 0.99), max(seconds)]
        shown = " / ".join(f"{value * unit:.1f}" for value in row)
        print(f"{name}: p50 / p99 / max {shown}")


if __name__ == "__main__":
    main()
