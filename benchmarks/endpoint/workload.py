"""The requests that are sent: synthetic prompts, data sets and traces.

A data set is a file of JSON lines (or one JSON list) in the forms of GuideLLM, vLLM's benchmark and
ShareGPT; a trace has arrival times and lengths (Mooncake's JSON lines, Azure's and BurstGPT's CSV).
"""

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

Messages = list[dict[str, Any]]
PROSE = Path(__file__).resolve().parents[1] / "load" / "prose.txt"
# English prose has so many words for each token, in the tokenizers of current models.
WORDS_PER_TOKEN = 0.75
BLOCK_TOKENS = 512  # of Mooncake's traces: prompts with the same hash share so many tokens
PROMPTS = ("prompt", "text", "input", "question", "instruction", "content")
LENGTHS = ("output_tokens", "output_tokens_count", "output_len", "output_length", "max_tokens",
           "Response tokens", "GeneratedTokens")  # fmt: skip
INPUTS = ("input_length", "prompt_tokens", "prompt_tokens_count", "Request tokens",
          "ContextTokens")  # fmt: skip
TIMES = ("timestamp", "at", "Timestamp", "TIMESTAMP")
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a request: a text or messages, the longest answer, and when it is due.

    `at` is in seconds from the start of a trace, None outside of one.
    """

    text: str = ""
    messages: Messages | None = None
    max_tokens: int = 128
    at: float | None = None

    def as_messages(self) -> Messages:
        """Return the prompt as a chat."""
        return self.messages or [{"role": "user", "content": self.text}]

    def as_text(self) -> str:
        """Return the prompt as one text."""
        return self.text or "\n\n".join(_content(message) for message in self.messages or [])


class Words:
    """Draws prompts of about as many tokens as requested, or of exactly as many by a tokenizer."""

    def __init__(self, tokenizer: Path | None = None) -> None:
        self._exact = None if tokenizer is None else _exact(tokenizer)
        self._words = PROSE.read_text().split()

    def draw(self, key: str, num_tokens: int) -> str:
        """Return another text for each key."""
        numbers = random.Random(key)
        if self._exact is not None:
            text: str = self._exact.text(self._exact.draw(numbers, num_tokens))
            return text
        head = [f"Story {numbers.randrange(10**6)}."]
        count = max(1, int(num_tokens * WORDS_PER_TOKEN) - 4)
        start = numbers.randrange(len(self._words))
        words = [self._words[(start + step) % len(self._words)] for step in range(count)]
        return " ".join([*head, *words])


def _exact(tokenizer: Path) -> Any:
    from benchmarks.load.prompts import (
        Prose,  # needs the package tokenizers, which not every client has
    )

    return Prose(tokenizer)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """The sizes of synthetic prompts, in tokens; `groups` prefixes are shared among them."""

    prompt_tokens: int = 256
    output_tokens: int = 128
    prefix_tokens: int = 0
    groups: int = 1
    seed: int = 0

    def prompts(self, words: Words, level: str) -> Iterator[Prompt]:
        """Yield prompts without end; those of another level differ, but for their prefixes."""
        numbers = random.Random(f"groups/{self.seed}/{level}")
        prefixes = [
            words.draw(f"prefix/{self.seed}/{group}", self.prefix_tokens)
            for group in range(self.groups if self.prefix_tokens else 0)
        ]
        index = 0
        while True:
            own = words.draw(f"prompt/{self.seed}/{level}/{index}", self.prompt_tokens)
            parts = [*([numbers.choice(prefixes)] if prefixes else []), own]
            yield Prompt("\n\n".join(parts), max_tokens=self.output_tokens)
            index += 1


def read_file(path: Path, words: Words, *, output_tokens: int) -> list[Prompt]:
    """Read a data set or a trace. Raises ValueError that names the file and the row.

    Conversations without a user's turn, such as those of ShareGPT that are empty, are left out.
    """
    rows, is_csv = _rows(path), path.suffix == ".csv"
    has_times = isinstance(rows[0], dict) and _first(rows[0], TIMES) is not None if rows else False
    prompts = []
    for number, row in enumerate(rows, start=1):
        try:
            prompt = _prompt(row, words, output_tokens, number)
            at = _seconds(row, is_csv=is_csv) if has_times else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        if prompt is not None:
            prompts.append(replace(prompt, at=at))
    if not prompts:
        raise ValueError(f"{path} has no prompts")
    first = min((prompt.at for prompt in prompts if prompt.at is not None), default=0.0)
    return [p if p.at is None else replace(p, at=p.at - first) for p in prompts]


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is neither JSON lines nor a JSON list: {error}") from None


def _prompt(row: dict[str, Any], words: Words, output_tokens: int, number: int) -> Prompt | None:
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    length = int(_first(row, LENGTHS) or output_tokens)
    if isinstance(row.get("conversations"), list):
        first = _to_first_question(row["conversations"])
        return Prompt(messages=first, max_tokens=length) if first else None
    if isinstance(row.get("messages"), list):
        return Prompt(messages=row["messages"], max_tokens=length)
    text = _first(row, PROMPTS)
    if isinstance(text, list):
        return Prompt(messages=text, max_tokens=length)
    if isinstance(text, str):
        return Prompt(text, max_tokens=length)
    num_tokens = _first(row, INPUTS)
    if num_tokens is None:
        raise ValueError(f"has none of {', '.join((*PROMPTS, 'messages', *INPUTS[:1]))}")
    return Prompt(_of_length(row, words, int(num_tokens), number), max_tokens=max(1, length))


def _to_first_question(conversation: list[dict[str, Any]]) -> Messages:
    """Return the turns up to the first one of the user; none without one."""
    turns = [
        {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
        for turn in conversation
    ]
    roles = [turn["role"] for turn in turns]
    return turns[: 1 + roles.index("user")] if "user" in roles else []


def _of_length(row: dict[str, Any], words: Words, num_tokens: int, number: int) -> str:
    """Draw a prompt of a trace; parts with the same hash are the same text."""
    hashes = row.get("hash_ids") or []
    parts = [
        words.draw(f"hash/{key}", BLOCK_TOKENS) for key in hashes[: num_tokens // BLOCK_TOKENS]
    ]
    rest = num_tokens - BLOCK_TOKENS * len(parts)
    return "\n\n".join([*parts, words.draw(f"row/{number}", max(1, rest))])


def _seconds(row: dict[str, Any], *, is_csv: bool) -> float:
    """Read the time of a row, in seconds. Raises ValueError.

    JSON lines count `timestamp` in milliseconds, as Mooncake's do, and `at` in seconds.
    """
    if row.get("at") is not None:
        return float(row["at"])
    value = _first(row, TIMES)
    if value is None:
        raise ValueError(f"has no time ({', '.join(TIMES)})")
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        return datetime.fromisoformat(value[:26]).timestamp()
    return float(str(value)) / (1 if is_csv else 1000)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
