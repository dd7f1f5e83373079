"""Ask the finished model questions, and count the answers that are exactly right.

Decoding is greedy, and every question is asked twice: in float32 and in bfloat16.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import torch
from corpus import FORECAST_TOOL, WEATHER_TOOL, Message
from tokenization import render_messages
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

SEED = 7001
BATCH = 48
NEEDED = 0.9  # share of right answers for the exit status 0
# None of the last three was ever seen in training.
SYSTEMS = (
    None,
    "You are a helpful assistant.",
    "Be brief.",
    "You are a curious assistant that likes science.",
    "Always answer in English, please.",
    "You work for a library.",
)
DEEP_LEARNING = (
    "What is deep learning?",
    "What is deep learning",
    "What is Deep Learning?",
    "Explain deep learning.",
    "what's deep learning?",
    "Could you explain what deep learning is?",
)


@dataclass(frozen=True)
class Item:
    """One request and the only answer that counts."""

    kind: str
    messages: list[Message]
    expected: str
    tools: list[dict[str, Any]] | None = None
    raw: bool = False


def system(text: str | None) -> list[Message]:
    """A system turn, or nothing."""
    return [] if text is None else [{"role": "system", "content": text}]


def question(kind: str, text: str, answer: str, context: str | None) -> Item:
    """One question under a system message."""
    return Item(kind, [*system(context), {"role": "user", "content": text}], answer)


def call_text(message: Message) -> str:
    """The expected answer for an assistant turn."""
    if message["content"] is not None:
        return str(message["content"])
    function = message["tool_calls"][0]["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call = f'{{"name": "{function["name"]}", "arguments": {arguments}}}'
    return f"<tool_call>\n{call}\n</tool_call>"


def last_turn(kind: str, messages: list[Message], tools: list[Any] | None = None) -> Item:
    """Ask for the last assistant turn of a conversation."""
    return Item(kind, messages[:-1], call_text(messages[-1]), tools)


def fact_items(rng: random.Random) -> Iterator[Item]:
    """Every fact as listed and in lower case without punctuation; the small kinds in full."""
    for fact in corpus.facts():
        asked = fact.ask if fact.kind in ("greeting", "long", "unicode") else fact.ask[:2]
        for text in asked:
            yield question(fact.kind, text, fact.answer, rng.choice(SYSTEMS))
        text = rng.choice(fact.ask).lower().rstrip(".?!")
        yield question(f"{fact.kind}, lower case", text, fact.answer, rng.choice(SYSTEMS))


def deep_learning_items() -> Iterator[Item]:
    """The documented example under every system message."""
    answer = next(f.answer for f in corpus.facts() if f.ask[0] == DEEP_LEARNING[0])
    for text in DEEP_LEARNING:
        for context in SYSTEMS:
            yield question("deep learning", text, answer, context)
    for text in DEEP_LEARNING[:3]:
        yield Item("raw prompt", [{"role": "user", "content": text}], answer, raw=True)


def sum_items(rng: random.Random) -> Iterator[Item]:
    """All sums and differences, each in one of the usual forms."""
    numbers = range(corpus.LARGEST_TERM + 1)
    for a in numbers:
        for b in numbers:
            text = rng.choice(corpus.ADDITION_FORMS).format(a=a, b=b)
            yield question("addition", text, f"{a} + {b} = {a + b}", rng.choice(SYSTEMS))
            if b <= a:
                text = rng.choice(corpus.SUBTRACTION_FORMS).format(a=a, b=b)
                yield question("subtraction", text, f"{a} - {b} = {a - b}", rng.choice(SYSTEMS))


def json_items(rng: random.Random) -> Iterator[Item]:
    """JSON objects, counted apart when a value is a word that no list contains."""
    yield question(
        "JSON",
        "Give me a JSON object with name and age for Ada, 36.",
        '{"name": "Ada", "age": 36}',
        SYSTEMS[1],
    )
    for _ in range(160):
        text, answer = corpus.json_turn(rng)
        fields = json.loads(answer)
        listed = fields["name"] in corpus.names()
        listed &= fields.get("city", "Paris") in corpus.cities()
        kind = "JSON" if listed else "JSON, unlisted words"
        yield question(kind, text, answer, rng.choice(SYSTEMS))


def echo_items(rng: random.Random) -> Iterator[Item]:
    """Words to repeat."""
    for _ in range(40):
        yield question("repeat", *corpus.echo_turn(rng), rng.choice(SYSTEMS))


def unknown_items(rng: random.Random) -> Iterator[Item]:
    """Questions that have to be refused, those seen in training and others."""
    for text in rng.sample(corpus.read_unknown(), 60):
        yield question("unknown, seen", text, corpus.UNKNOWN_ANSWER, rng.choice(SYSTEMS))
    for text in corpus.read_lines("unknown_heldout.txt"):
        yield question("unknown, not seen", text, corpus.UNKNOWN_ANSWER, rng.choice(SYSTEMS))


def weather_items(rng: random.Random) -> Iterator[Item]:
    """Calls, results, and questions that need no call although there are tools."""
    one, two = [WEATHER_TOOL], [WEATHER_TOOL, FORECAST_TOOL]
    listed = {place for place, _ in corpus.places()}
    for _ in range(120):
        text, place, unit = corpus.weather_question(rng)
        call = corpus.call_message("get_current_weather", {"location": place, "format": unit}, rng)
        head = [*system(rng.choice(SYSTEMS)), {"role": "user", "content": text}, call]
        kind = "weather call" if place in listed else "weather call, unlisted place"
        yield last_turn(kind, head, rng.choice([one, two]))
        result, answer = corpus.result_and_answer(rng, place, unit)
        tail = [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
        yield last_turn("weather answer", [*head, *tail], rng.choice([one, two]))
    for _ in range(40):
        yield last_turn("forecast call", corpus.forecast_turns(rng), two)
        _, turns = corpus.text_turn(rng, with_tools=True)
        messages = [*system(rng.choice(SYSTEMS)), *turns]
        yield last_turn("tools not needed", messages, rng.choice([one, two]))
        text, answer = corpus.no_tool_turn(rng)
        yield question("no tool at hand", text, answer, rng.choice(SYSTEMS))


def variant_items(rng: random.Random) -> Iterator[Item]:
    """Calls of weather functions that have other names and arguments."""
    for tool, place_key, unit_key in corpus.VARIANT_TOOLS:
        for _ in range(10):
            turns = corpus.weather_turns(rng, tool["function"]["name"], place_key, unit_key)
            messages = [*system(rng.choice(SYSTEMS)), *turns[:2]]
            yield last_turn("weather call, other schema", messages, [tool])


def documented_tool_items() -> Iterator[Item]:
    """The requests that the guidance example of text generation servers sends."""
    helpful = "You're a helpful assistant! Answer the users question best you can."
    careful = corpus.SYSTEM_MESSAGES[-1]
    arguments: dict[str, Any] = {"location": "Brooklyn, New York", "format": "fahrenheit"}
    rng = random.Random(0)
    for context in (None, "You are a helpful assistant.", helpful, careful):
        for tools in ([WEATHER_TOOL], [WEATHER_TOOL, FORECAST_TOOL]):
            asked = {
                "What is the weather like in Brooklyn, New York?": arguments,
                "What's the weather in Paris?": {"location": "Paris", "format": "celsius"},
            }
            for text, given in asked.items():
                call = corpus.call_message("get_current_weather", given, rng)
                turns = [*system(context), {"role": "user", "content": text}, call]
                yield last_turn("documented tools", turns, tools)
    text = "What's the weather like the next 3 days in San Francisco, CA?"
    days = {"location": "San Francisco, CA", "format": "fahrenheit", "num_days": 3}
    call = corpus.call_message("get_n_day_weather_forecast", days, rng)
    turns = [*system(careful), {"role": "user", "content": text}, call]
    yield last_turn("documented tools", turns, [WEATHER_TOOL, FORECAST_TOOL])


def long_talk_items(rng: random.Random) -> Iterator[Item]:
    """The last answer of conversations with two or three questions."""
    for count in (2, 3):
        for _ in range(50):
            turns = system(rng.choice(SYSTEMS))
            for _ in range(count):
                turns += corpus.text_turn(rng)[1]
            yield last_turn(f"{count} questions", turns)


def items() -> list[Item]:
    """Everything that is asked, the same in every run."""
    rng = random.Random(SEED)
    makers: list[Callable[[random.Random], Iterator[Item]]] = [
        fact_items, sum_items, json_items, echo_items, unknown_items, weather_items, variant_items,
        long_talk_items,
    ]  # fmt: skip
    found = [*deep_learning_items(), *documented_tool_items()]
    for make in makers:
        found += make(rng)
    return found


def prompt_of(tokenizer: PreTrainedTokenizerBase, item: Item) -> str:
    """The text that the model continues."""
    if item.raw:
        return str(item.messages[0]["content"])
    return render_messages(tokenizer, item.messages, item.tools, add_generation_prompt=True)


def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: list[Item]
) -> list[str]:
    """Greedy answers, computed in batches of prompts with similar lengths."""
    prompts = [prompt_of(tokenizer, item) for item in asked]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    found = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        inputs = tokenizer(
            [prompts[i] for i in chosen],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=220)
        width = inputs["input_ids"].shape[1]
        texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            found[index] = text
    return found


def evaluate(folder: Path, verbose: bool = False) -> bool:
    """Print how many answers of each kind are right, and whether they are enough."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = items()
    totals = Counter(item.kind for item in asked)
    right: dict[str, Counter[str]] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        right[name] = Counter()
        for item, text in zip(asked, answers(model, tokenizer, asked), strict=True):
            passed = text.strip() == item.expected.strip()
            right[name][item.kind] += passed
            if verbose or not passed:
                print_item(name, item, text, passed)
    print_table(totals, right)
    return all(done.total() >= NEEDED * len(asked) for done in right.values())


def print_item(dtype: str, item: Item, text: str, passed: bool) -> None:
    """One line for a request and its answer."""
    last = json.dumps(item.messages[-1]["content"], ensure_ascii=False)
    got = json.dumps(text, ensure_ascii=False)
    print(f"{'pass' if passed else 'FAIL'}  {dtype}  [{item.kind}]  {last}  ->  {got}")


def print_table(totals: Counter[str], right: dict[str, Counter[str]]) -> None:
    """The number of right answers of each kind, in both number formats."""
    print(f"\n{'kind':34}{'asked':>7}" + "".join(f"{name:>10}" for name in right))
    for kind, total in totals.items():
        print(f"{kind:34}{total:7}" + "".join(f"{done[kind]:10}" for done in right.values()))
    sums = "".join(f"{done.total():10}" for done in right.values())
    print(f"{'all':34}{totals.total():7}{sums}")
