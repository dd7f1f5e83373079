"""Compares two answers of any API: the first difference, and how much is different."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONTEXT = 30
# Words compared by edits; the rest of longer answers counts as different from the first change on.
MOST_WORDS = 1000
_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two answers. `position` counts characters; `edit_ratio` is words, from 0 to 1.

    `largest` is the largest difference of two numbers, for vectors and scores.
    """

    is_exact: bool
    position: int | None = None
    edit_ratio: float = 0.0
    before: str = ""
    after: str = ""
    largest: float | None = None


def compare(old: Any, new: Any) -> Difference:
    """Compare two answers."""
    old_numbers, new_numbers = numbers_of(old), numbers_of(new)
    if old_numbers or new_numbers:
        return _compare_numbers(old_numbers, new_numbers)
    return compare_texts(text_of(old), text_of(new))


def compare_texts(old: str, new: str) -> Difference:
    """Compare two texts."""
    if old == new:
        return Difference(True)
    position = _first_difference(old, new)
    shown = slice(max(0, position - CONTEXT), position + CONTEXT)
    old_words, new_words = _WORD.findall(old), _WORD.findall(new)
    ratio = _edits(old_words, new_words) / max(len(old_words), len(new_words), 1)
    return Difference(False, position, ratio, old[shown], new[shown])


def text_of(answer: Any) -> str:
    """Return what an answer says: texts, thoughts and calls; not its id, times or usage."""
    answers = answer if isinstance(answer, list) else [answer]
    return "\n".join(_one_text(item) for item in answers)


def _one_text(answer: Any) -> str:
    if not isinstance(answer, dict):
        return answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)
    if "generated_text" in answer:
        return str(answer["generated_text"])
    if isinstance(answer.get("choices"), list):
        return "\n".join(_choice(choice) for choice in answer["choices"])
    for name in ("content", "output"):  # Anthropic's blocks, items of responses
        if isinstance(answer.get(name), list):
            return "\n".join(_without_ids(item) for item in answer[name])
    return _without_ids(answer)


def _choice(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    message = choice.get("message") or {}
    parts = [message.get("reasoning_content") or "", message.get("content") or ""]
    parts += [_without_ids(call) for call in message.get("tool_calls") or []]
    return "\n".join(part for part in parts if part)


def _without_ids(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    kept = {key: item for key, item in value.items() if key not in ("id", "index", "call_id")}
    return json.dumps(kept, sort_keys=True)


def numbers_of(answer: Any) -> list[float]:
    """Return all numbers of an answer with vectors or scores; [] for other answers."""
    if isinstance(answer, dict):
        if isinstance(answer.get("data"), list):
            parts = [
                item.get("embedding", item.get("data", item.get("score")))
                for item in answer["data"]
            ]
            return _flat(parts)
        if isinstance(answer.get("results"), list):
            scores = {item["index"]: item["relevance_score"] for item in answer["results"]}
            return [scores[index] for index in sorted(scores)]
        return []
    return _flat(answer) if isinstance(answer, list) else []


def _flat(value: Any) -> list[float]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [float(value)]
    return [number for item in value for number in _flat(item)] if isinstance(value, list) else []


def _compare_numbers(old: Sequence[float], new: Sequence[float]) -> Difference:
    if old == new:
        return Difference(True, largest=0.0)
    if len(old) != len(new):
        return Difference(False, min(len(old), len(new)), 1.0, f"{len(old)}", f"{len(new)} numbers")
    gaps = [abs(a - b) for a, b in zip(old, new, strict=True)]
    position = next(index for index, gap in enumerate(gaps) if gap)
    ratio = sum(gap > 0 for gap in gaps) / len(gaps)
    return Difference(False, position, ratio, str(old[position]), str(new[position]), max(gaps))


def _first_difference(old: Sequence[str], new: Sequence[str]) -> int:
    pairs = zip(old, new, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))


def _edits(old: list[str], new: list[str]) -> int:
    """Return the edit distance of words (Levenshtein)."""
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    start = _first_difference(old, new)
    old, new = old[start:], new[start:]
    if max(len(old), len(new)) > MOST_WORDS:
        return max(len(old), len(new))
    row = list(range(len(new) + 1))
    for number, word in enumerate(old, 1):
        last, row[0] = row[0], number
        for column, other in enumerate(new, 1):
            change = last + (word != other)
            last = row[column]
            row[column] = min(change, row[column] + 1, row[column - 1] + 1)
    return row[-1]
