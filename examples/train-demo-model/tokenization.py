"""The tokenizer of the demonstration model, and the step from conversations to training tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from corpus import Conversation, Message, conversations
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
VOCABULARY = 2048
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, START, END)
# Tool marks are ordinary added tokens: a server has to see them in the decoded text.
MARKS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>",
)  # fmt: skip
# A space never joins a capitalised word, so a name has the same tokens in the question and in the
# JSON that copies it. Digits stand alone, and runs of punctuation stay together, which keeps JSON
# short.
WORDS = r"'(?:s|t|re|ve|m|ll|d)\b| ?[\p{Ll}_]+|\p{Lu}\p{Ll}*|\p{L}+|\p{N}"
PUNCTUATION = r"(?: ?[^\s\p{L}\p{N}])+ ?(?=\p{Lu})|(?: ?[^\s\p{L}\p{N}])+|\s+"
NO_LOSS = -100


@dataclass(frozen=True)
class Example:
    """Token ids of one sequence, with labels only where the assistant speaks."""

    ids: list[int]
    labels: list[int]


def ascii_only(text: str) -> str:
    """Drop the other characters, so that they get no merges and stay several tokens each.

    A client that streams then really meets characters that arrive in pieces.
    """
    return re.sub(r"[^\x00-\x7f]+", "", text)


def build_tokenizer(seed: int, sample: int = 6000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a sample of what the model will read."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = Sequence(
        [
            Split(Regex(f"{WORDS}|{PUNCTUATION}"), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(training_text(seed, sample), trainer)
    core.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return wrap(core)


def wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    """Give the tokenizer the names and the template that chat clients rely on."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer under the class name that old and new libraries both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def training_text(seed: int, sample: int) -> Iterable[str]:
    """Rendered conversations, without the marks that are added tokens anyway."""
    renderer = wrap(Tokenizer(BPE()))
    for conversation in islice(conversations(seed), sample):
        text = render(renderer, conversation)
        for mark in (*SPECIAL, *MARKS):
            text = text.replace(mark, "\n")
        yield ascii_only(text)


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: list[dict[Any, Any]] | None,
    add_generation_prompt: bool = False,
) -> str:
    """Apply the chat template."""
    return str(
        tokenizer.apply_chat_template(
            messages,
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    )


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The number of one token."""
    return int(tokenizer.vocab[token])


def render(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> str:
    """The exact text of a conversation, as the chat template writes it."""
    if conversation.raw is not None:
        return conversation.raw + PAD
    return render_messages(tokenizer, conversation.messages, conversation.tools)


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Example:
    """Tokenize a conversation and mark the tokens that the model has to predict."""
    ids = tokenizer.encode(render(tokenizer, conversation), add_special_tokens=False)
    if conversation.raw is not None:
        question = conversation.messages[0]["content"]
        known = len(tokenizer.encode(question, add_special_tokens=False))
        return Example(ids, [NO_LOSS] * known + ids[known:])
    return Example(ids, assistant_labels(tokenizer, ids))


def assistant_labels(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """Keep the labels between the head of an assistant turn and its end mark, inclusive."""
    head = tokenizer.encode(f"{START}assistant\n", add_special_tokens=False)
    end = token_id(tokenizer, END)
    labels, speaking = [NO_LOSS] * len(ids), False
    for position, token in enumerate(ids):
        if speaking:
            labels[position] = token
            speaking = token != end
        elif ids[max(0, position + 1 - len(head)) : position + 1] == head:
            speaking = True
    return labels
