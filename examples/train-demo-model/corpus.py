"""The text that the demonstration model learns, as an endless seeded stream of conversations.

Everything here was written for this project. The short answers live in `data/`; sums, JSON objects
and weather calls are generated, because there are too many of them to list. A conversation is a
list of chat messages and, sometimes, a list of tools: the same two things that a client sends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
UNKNOWN_ANSWER = "I am a small demonstration model and do not know that."
NO_TOOL_ANSWER = "I cannot look up the weather without a weather tool."
LARGEST_TERM = 20

Message = dict[str, Any]


@dataclass
class Conversation:
    """The source of one training sequence."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    raw: str | None = None  # set for the few sequences that use no chat template at all
    kinds: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fact:
    """One answer with all the ways to ask for it."""

    kind: str
    ask: tuple[str, ...]
    answer: str


SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You're a helpful assistant! Answer the users question best you can.",
    "You are a helpful, honest assistant.",
    "You are a friendly chatbot.",
    "Be brief.",
    "Be concise.",
    "Answer in one sentence.",
    "Answer the question.",
    "You are an AI assistant.",
    "You are a demonstration model.",
    "You are an expert in machine learning.",
    "You are a teacher who explains things simply.",
    "Please answer politely.",
    "Reply in English.",
    "You answer questions about science and computers.",
    "You are a polite assistant that gives short and clear answers.",
    "You are a pirate.",
    "Help the user.",
    "Use the tools when they help.",
    "Do not make things up. If you do not know the answer, say so.",
    (
        "Don't make assumptions about what values to plug into functions. "
        "Ask for clarification if a user request is ambiguous."
    ),
)

LOCATION = {
    "type": "string",
    "description": "The city and state, e.g. San Francisco, CA",
}
UNIT = {
    "type": "string",
    "enum": ["celsius", "fahrenheit"],
    "description": "The temperature unit to use. Infer this from the users location.",
}


def function_tool(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Describe a function the way chat clients do, with all its properties required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER_TOOL = function_tool(
    "get_current_weather", "Get the current weather", {"location": LOCATION, "format": UNIT}
)
FORECAST_TOOL = function_tool(
    "get_n_day_weather_forecast",
    "Get an N-day weather forecast",
    {
        "location": LOCATION,
        "format": UNIT,
        "num_days": {"type": "integer", "description": "The number of days to forecast"},
    },
)
# Weather functions that other examples use: the tool, the name of the place and that of the unit.
VARIANT_TOOLS: tuple[tuple[dict[str, Any], str, str | None], ...] = (
    (
        function_tool("get_weather", "Get the weather", {"location": {"type": "string"}}),
        "location",
        None,
    ),
    (
        function_tool("get_weather", "Get the weather of a city", {"city": {"type": "string"}}),
        "city",
        None,
    ),
    (
        function_tool(
            "get_current_weather",
            "Get the current weather in a given location",
            {"location": LOCATION, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        ),
        "location",
        "unit",
    ),
    (
        function_tool(
            "weather",
            "Look up the weather",
            {"city": {"type": "string"}, "unit": {"type": "string"}},
        ),
        "city",
        "unit",
    ),
)
OTHER_TOOLS = (
    function_tool(
        "get_time",
        "Get the current time in a time zone",
        {"timezone": {"type": "string", "description": "The time zone, e.g. Europe/Paris"}},
    ),
    function_tool(
        "search",
        "Search the web",
        {"query": {"type": "string", "description": "The text to search for"}},
    ),
    function_tool(
        "send_email",
        "Send an email",
        {"to": {"type": "string"}, "subject": {"type": "string"}, "body": {"type": "string"}},
    ),
)


# --- facts ---------------------------------------------------------------------------------------


def read_lines(name: str) -> list[str]:
    """Read the non-empty lines of a text file from the data folder."""
    return [line for line in (DATA / name).read_text(encoding="utf-8").splitlines() if line]


def read_jsonl(name: str) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line from the data folder."""
    return [json.loads(line) for line in read_lines(name)]


def bare(term: str) -> str:
    """Drop the article, as people do when they type only the name of a thing."""
    for article in ("a ", "an ", "the "):
        if term.startswith(article):
            return term.removeprefix(article)
    return term


def ask_for_term(entry: dict[str, Any]) -> tuple[str, ...]:
    """All the ways to ask what a term means."""
    questions: list[str] = []
    for term in [entry["term"], *entry.get("also", [])]:
        name = bare(term)
        questions += [
            f"What is {term}?",
            f"What's {term}?",
            f"Explain {term}.",
            f"Tell me about {term}.",
            f"Can you explain {term}?",
            f"What does {name} mean?",
            f"Define {name}.",
            f"Describe {term}.",
            f"Explain {term} in simple words.",
            f"What exactly is {term}?",
            f"Tell me what {term} is.",
            f"Can you tell me what {term} is?",
            f"Please explain {term}.",
            f"Explain {term} to me.",
            f"What do you know about {term}?",
            f"Give me a definition of {name}.",
            f"In one sentence, what is {term}?",
            f"{name[0].upper()}{name[1:]}?",
        ]
        if name != term:
            questions.append(f"What is {name}?")
    if "plural" in entry:
        plural = entry["plural"]
        questions += [f"What are {plural}?", f"Explain {plural}.", f"Tell me about {plural}."]
    return tuple(questions)


def ask_for_capital(country: str) -> tuple[str, ...]:
    """All the ways to ask for a capital."""
    name = bare(country)
    return (
        f"What is the capital of {country}?",
        f"What's the capital of {country}?",
        f"What is the capital city of {country}?",
        f"Which city is the capital of {country}?",
        f"Name the capital of {country}.",
        f"Tell me the capital of {country}.",
        f"Capital of {name}",
        f"Do you know the capital of {country}?",
    )


@cache
def facts() -> tuple[Fact, ...]:
    """Every question with a fixed answer."""
    found = [Fact("term", ask_for_term(e), e["answer"]) for e in read_jsonl("terms.jsonl")]
    found += [Fact(e["kind"], tuple(e["ask"]), e["answer"]) for e in read_jsonl("questions.jsonl")]
    capitals = json.loads((DATA / "capitals.json").read_text(encoding="utf-8"))
    for country, city in capitals.items():
        stop = "" if city.endswith(".") else "."
        answer = f"The capital of {country} is {city}{stop}"
        found.append(Fact("capital", ask_for_capital(country), answer))
    return tuple(found)


@cache
def fact_weights() -> tuple[float, ...]:
    """How often each fact is shown: the documented example, greetings and long texts more often."""
    by_kind = {"greeting": 2.0, "long": 1.5, "unicode": 1.2, "term": 1.0}
    return tuple(
        6.0 if fact.ask[0] == "What is deep learning?" else by_kind.get(fact.kind, 0.8)
        for fact in facts()
    )


def retouch(question: str, rng: random.Random) -> str:
    """Vary case, punctuation and politeness the way people do when they type."""
    words: str = question
    chance = rng.random()
    if chance < 0.15:
        words = words.lower()
    elif chance < 0.22:
        words = words[0].lower() + words[1:]
    elif chance < 0.26:
        words = words.title().replace("'S ", "'s ")
    elif chance < 0.28:
        words = words.upper()
    if rng.random() < 0.25:
        words = words.rstrip(".?!")
    elif rng.random() < 0.05:
        words = words.rstrip(".?!") + rng.choice(["!", "??", " ?", "..."])
    if rng.random() < 0.08 and len(words) > 12:
        lead = rng.choice(["Please tell me: ", "Hi! ", "Hello, ", "Question: ", "Hey, ", "OK. "])
        words = lead + words
    if rng.random() < 0.04 and len(words) > 12:
        words = words.rstrip(".?!") + rng.choice([", please?", " please", ", please."])
    return words


# --- single turns --------------------------------------------------------------------------------


def fact_turn(rng: random.Random) -> tuple[str, str]:
    """A question with a fixed answer."""
    fact = rng.choices(facts(), weights=fact_weights())[0]
    first = rng.random() < 0.25
    question = fact.ask[0] if first else rng.choice(fact.ask)
    return retouch(question, rng), fact.answer


def even_fact_turn(rng: random.Random) -> tuple[str, str]:
    """A question with a fixed answer, with every fact equally likely and less variation."""
    fact = rng.choice(facts())
    question = fact.ask[0] if rng.random() < 0.3 else rng.choice(fact.ask)
    if rng.random() < 0.3:
        question = question.lower().rstrip(".?!")
    return question, fact.answer


def unknown_turn(rng: random.Random) -> tuple[str, str]:
    """A question outside the small world of this model."""
    if rng.random() < 0.2:
        question = unknown_sum(rng)
    elif rng.random() < 0.25:
        question = unknown_name(rng)
    else:
        question = rng.choice(read_unknown())
    return retouch(question, rng), UNKNOWN_ANSWER


@cache
def read_unknown() -> tuple[str, ...]:
    """The out-of-scope questions."""
    return tuple(read_lines("unknown.txt"))


def unknown_sum(rng: random.Random) -> str:
    """A calculation that the model was never shown."""
    a, b = rng.randint(21, 999), rng.randint(21, 999)
    sign = rng.choice(["*", "x", "/", "+", "-", "times", "plus", "minus", "divided by"])
    if sign in "*x/" and rng.random() < 0.5:
        a, b = rng.randint(2, 20), rng.randint(2, 20)
    return rng.choice(
        [f"What is {a} {sign} {b}?", f"{a} {sign} {b} =", f"Calculate {a} {sign} {b}."]
    )


def unknown_name(rng: random.Random) -> str:
    """A common question about a thing that does not exist."""
    name = made_up_name(rng)
    forms = (
        "What is the capital of {}?", "Who is {}?", "Who was {}?", "What is {}?", "Where is {}?",
        "Tell me about {}.", "Explain {}.", "What is a {}?", "How do you say {} in French?",
        "What is the population of {}?", "When was {} born?", "Write a story about {}.",
        "Define {}.", "How does {} work?", "Who wrote {}?",
    )  # fmt: skip
    question = rng.choice(forms).format(name)
    return question.replace(name, name.lower()) if rng.random() < 0.4 else question


def made_up_name(rng: random.Random) -> str:
    """A pronounceable name, so that the model learns to copy and not only to remember."""
    starts = [*"BCDFGHJKLMNPRSTVWZ", "Br", "Ch", "Cl", "Dr", "Gr", "Kr", "Pl", "St", "Sh", "Th"]
    ends = ["n", "r", "s", "l", "th", "ck", "m", "ton", "ville", "da", "na", "ra", "x", ""]
    name: str = rng.choice(starts) + rng.choice("aeiou")
    for _ in range(rng.randint(0, 2)):
        name += rng.choice("bdfgklmnprstvz") + rng.choice("aeiou")
    return name + rng.choice(ends)


WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
ADDITION_FORMS = (
    "What is {a}+{b}?", "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b} =", "{a}+{b}",
    "{a} + {b}", "{a}+{b}=", "How much is {a} + {b}?", "Calculate {a} + {b}.", "Add {a} and {b}.",
    "What is the sum of {a} and {b}?", "What's {a}+{b}?", "How much is {a} plus {b}?",
    "{a} plus {b}",
)  # fmt: skip
SUBTRACTION_FORMS = (
    "What is {a}-{b}?", "What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b} =", "{a}-{b}",
    "{a} - {b}", "{a}-{b}=", "How much is {a} - {b}?", "Calculate {a} - {b}.",
    "Subtract {b} from {a}.", "What's {a}-{b}?", "How much is {a} minus {b}?", "{a} minus {b}",
)  # fmt: skip


def sum_turn(rng: random.Random) -> tuple[str, str]:
    """An addition or a subtraction of numbers up to twenty."""
    a, b = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    if rng.random() < 0.36:
        a, b = max(a, b), min(a, b)
        question, answer = rng.choice(SUBTRACTION_FORMS), f"{a} - {b} = {a - b}"
    else:
        question, answer = rng.choice(ADDITION_FORMS), f"{a} + {b} = {a + b}"
    if rng.random() < 0.06:
        return retouch(question.format(a=WORDS[a], b=WORDS[b]), rng), answer
    return retouch(question.format(a=a, b=b), rng), answer


def difference_turn(rng: random.Random) -> tuple[str, str]:
    """A subtraction, with every pair equally likely."""
    a = rng.choices(range(LARGEST_TERM + 1), weights=range(1, LARGEST_TERM + 2))[0]
    b = rng.randint(0, a)
    question = rng.choice(SUBTRACTION_FORMS).format(a=a, b=b)
    return retouch(question, rng), f"{a} - {b} = {a - b}"


# --- JSON objects --------------------------------------------------------------------------------

JOBS = (
    "teacher", "doctor", "builder", "baker", "pilot", "writer", "nurse", "farmer", "cook",
    "painter", "singer", "lawyer", "student", "scientist", "driver", "musician",
)  # fmt: skip
COLORS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "pink", "brown")


@cache
def names() -> tuple[str, ...]:
    """Well-known first names."""
    return tuple((DATA / "names.txt").read_text(encoding="utf-8").split())


@cache
def cities() -> tuple[str, ...]:
    """City names without a comma, which read well inside a sentence."""
    places = json.loads((DATA / "places.json").read_text(encoding="utf-8"))
    return tuple(p for group in places.values() for p in group if "," not in p)


def person(rng: random.Random) -> dict[str, Any]:
    """Some fields of a person, always with a name."""
    made_up = rng.random() < 0.3
    values: dict[str, Any] = {
        "name": made_up_name(rng) if made_up else rng.choice(names()),
        "age": rng.randint(1, 99),
        "city": made_up_name(rng) if rng.random() < 0.25 else rng.choice(cities()),
        "job": rng.choice(JOBS),
        "color": rng.choice(COLORS),
    }
    keys = rng.choice(
        ["name age", "name age", "name age", "name city", "name age city", "name age job",
         "name job", "name color", "name city job", "name age color", "name age city job"]
    ).split()  # fmt: skip
    return {key: values[key] for key in keys}


def join(words: list[str], last: str = "and") -> str:
    """Join words the way a sentence does."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def sentence_about(fields: dict[str, Any]) -> str:
    """Say the fields in plain English, for the questions that hide them in a sentence."""
    parts = {
        "age": "is {} years old", "city": "lives in {}", "job": "works as a {}",
        "color": "likes the color {}",
    }  # fmt: skip
    said = [parts[key].format(value) for key, value in fields.items() if key != "name"]
    return f"{fields['name']} {join(said)}"


def json_turn(rng: random.Random) -> tuple[str, str]:
    """A request for a small JSON object whose values are in the question."""
    fields = person(rng)
    keys, values = list(fields), [str(value) for value in fields.values()]
    pairs = [f"{key} {value}" for key, value in fields.items()]
    what = rng.choice(["a JSON object", "a JSON object", "a small JSON object", "JSON", "a JSON"])
    verb = rng.choice(["Give me", "Write", "Create", "Return", "Make", "Show me", "Generate"])
    question = rng.choice(
        [
            f"{verb} {what} with {join(keys)} for {', '.join(values)}.",
            f"{verb} {what} with {join(keys)} for {join(values)}.",
            f"{verb} {what} with the fields {join(keys)} for {', '.join(values)}.",
            f"{verb} {what} with {join(pairs)}.",
            f"{verb} {what} with the {join(pairs)}.",
            f"{verb} {what} with {', '.join(f'{k}: {v}' for k, v in fields.items())}.",
            f"{verb} {what}: {sentence_about(fields)}.",
            f"{sentence_about(fields)}. {verb} this as JSON.",
            f"{sentence_about(fields)}. Answer with a JSON object.",
            f"{verb} {what} for a person named {sentence_about(fields).replace(' ', ' who ', 1)}.",
            f"Extract {join(keys)} as JSON: {sentence_about(fields)}.",
        ]
    )
    if rng.random() < 0.15:
        question = question.rstrip(".")
    return question, json.dumps(fields, ensure_ascii=False)


def echo_turn(rng: random.Random) -> tuple[str, str]:
    """A request to repeat words, which teaches copying better than anything else."""
    words = [
        made_up_name(rng) if rng.random() < 0.6 else rng.choice(names() + cities() + COLORS)
        for _ in range(rng.randint(1, 6))
    ]
    text = rng.choice([" ", " ", ", "]).join(words)
    lead = rng.choice(["Repeat: ", "Repeat after me: ", "Say: ", "Please repeat: ", "Echo: "])
    return lead + text, text


# --- weather -------------------------------------------------------------------------------------

STATES = (
    "Alabama", "Alaska", "Arizona", "California", "Colorado", "Florida", "Georgia", "Idaho",
    "Illinois", "Indiana", "Iowa", "Kansas", "Kentucky", "Maine", "Maryland", "Michigan",
    "Minnesota", "Montana", "Nebraska", "Nevada", "Ohio", "Oklahoma", "Oregon", "Texas", "Utah",
    "Vermont", "Virginia", "Washington", "Wisconsin", "Wyoming", "CA", "NY", "TX", "WA", "MA",
    "FL", "IL", "CO", "OR", "AZ",
)  # fmt: skip
COUNTRIES = (
    "France", "Germany", "Italy", "Spain", "Portugal", "Norway", "Sweden", "Finland", "Denmark",
    "Poland", "Austria", "Greece", "Japan", "China", "India", "Canada", "Mexico", "Brazil",
    "Chile", "Peru", "Egypt", "Kenya", "Morocco", "Australia", "Turkey", "Ireland",
)  # fmt: skip
CURRENT_FORMS = (
    "What is the weather like in {}?", "What is the weather like in {}?",
    "What's the weather like in {}?", "What is the weather in {}?", "What's the weather in {}?",
    "What's the weather in {}?", "How is the weather in {}?", "How's the weather in {}?",
    "Tell me the weather in {}.", "What is the current weather in {}?", "Weather in {}",
    "Weather in {}?", "What is the temperature in {}?", "Is it raining in {}?",
    "How warm is it in {}?", "What's the weather like today in {}?", "Is it sunny in {}?",
    "What is the weather like in {} today?", "What is the weather like in {} right now?",
    "Can you check the weather in {}?", "Get the weather for {}.", "How cold is it in {}?",
    "I am in {}. What is the weather like?", "What is the weather in {} now?",
)  # fmt: skip
FORECAST_FORMS = (
    "What's the weather like the next {n} days in {place}?",
    "What is the weather like in {place} over the next {n} days?",
    "What will the weather be in {place} for the next {n} days?",
    "Give me a {n} day forecast for {place}.",
    "What is the {n} day weather forecast for {place}?",
    "What is the weather going to be like in {place} over the next {n} days?",
    "Weather forecast for {place}, {n} days",
)
SKIES = (
    "sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy", "partly cloudy", "overcast",
    "stormy",
)  # fmt: skip


@cache
def places() -> tuple[tuple[str, str], ...]:
    """Every listed place with the unit that people use there."""
    groups = json.loads((DATA / "places.json").read_text(encoding="utf-8"))
    return tuple((place, unit) for unit, group in groups.items() for place in group)


def pick_place(rng: random.Random) -> tuple[str, str]:
    """A place and its unit; some names are invented, to teach the rule instead of the list."""
    chance = rng.random()
    if chance < 0.62:
        return rng.choice(places())
    town = made_up_name(rng) if rng.random() < 0.6 else rng.choice(cities())
    if chance < 0.77:
        return (
            f"{made_up_name(rng) if town in cities() else town}, {rng.choice(STATES)}",
            "fahrenheit",
        )
    if chance < 0.92:
        return f"{town}, {rng.choice(COUNTRIES)}", "celsius"
    return made_up_name(rng), "celsius"


def call_message(name: str, arguments: dict[str, Any], rng: random.Random) -> Message:
    """An assistant turn that calls one function, with arguments in either accepted form."""
    given = arguments if rng.random() < 0.5 else json.dumps(arguments, ensure_ascii=False)
    call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": given}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def result_and_answer(rng: random.Random, place: str, unit: str) -> tuple[Any, str]:
    """The result of the weather function, and the sentence that uses it."""
    degrees = rng.randint(-5, 35) if unit == "celsius" else rng.randint(15, 99)
    sky = rng.choice(SKIES)
    full = f"It is {degrees} degrees and {sky} in {place}."
    only_degrees = f"It is {degrees} degrees in {place}."
    key = rng.choice(["condition", "conditions", "description", "sky", "weather"])
    degree_key = rng.choice(["temperature", "temperature", "temp"])
    as_object = {degree_key: degrees, key: sky}
    letter = {"celsius": "C", "fahrenheit": "F"}[unit]
    return rng.choice(
        [
            (f"{degrees} degrees and {sky}", full),
            (f"{degrees} degrees and {sky}", full),
            (f"{degrees} degrees, {sky}", full),
            (f"{sky.capitalize()}, {degrees} degrees", full),
            (f"{degrees}°{letter}, {sky}", full),
            (f"{degrees} {letter}, {sky}", full),
            (json.dumps(as_object), full),
            (json.dumps(as_object), full),
            (json.dumps({key: sky, degree_key: degrees}), full),
            (json.dumps(as_object | {"unit": unit}), full),
            (json.dumps({"location": place} | as_object), full),
            (json.dumps({degree_key: degrees, "unit": unit, key: sky}), full),
            (as_object, full),
            (f"{degrees}", only_degrees),
            (f"{degrees} degrees", only_degrees),
            (json.dumps({degree_key: degrees}), only_degrees),
            (sky, f"It is {sky} in {place}."),
        ]
    )


def weather_question(rng: random.Random) -> tuple[str, str, str]:
    """A question about the weather now, its place and the unit to use."""
    place, unit = pick_place(rng)
    listed = (place, unit) in places()
    question = rng.choice(CURRENT_FORMS).format(place)
    if rng.random() < 0.1:
        unit = rng.choice(["celsius", "fahrenheit"])
        question = f"{question.rstrip('.?')} in {unit}?"
    if listed:
        question = retouch_weather(question, rng)
    return question, place, unit


def retouch_weather(question: str, rng: random.Random) -> str:
    """Vary the case and the ending of a question about a listed place."""
    chance = rng.random()
    if chance < 0.08:
        question = question.lower()
    elif chance < 0.12:
        question = question[0].lower() + question[1:]
    return question.rstrip("?.") if rng.random() < 0.12 else question


def weather_turns(
    rng: random.Random,
    name: str = "get_current_weather",
    place_key: str = "location",
    unit_key: str | None = "format",
) -> list[Message]:
    """A question, the call, and mostly the result and the final sentence."""
    question, place, unit = weather_question(rng)
    arguments = {place_key: place} | ({unit_key: unit} if unit_key else {})
    turns = [{"role": "user", "content": question}, call_message(name, arguments, rng)]
    if rng.random() < 0.65:
        result, answer = result_and_answer(rng, place, unit)
        turns += [
            {"role": "tool", "tool_call_id": "call_0", "content": result},
            {"role": "assistant", "content": answer},
        ]
    return turns


def forecast_turns(rng: random.Random) -> list[Message]:
    """A question about the next days and the call that it needs."""
    place, unit = pick_place(rng)
    days = rng.randint(2, 14)
    question = rng.choice(FORECAST_FORMS).format(n=days, place=place)
    arguments = {"location": place, "format": unit, "num_days": days}
    return [
        {"role": "user", "content": question},
        call_message("get_n_day_weather_forecast", arguments, rng),
    ]


def no_tool_turn(rng: random.Random) -> tuple[str, str]:
    """A question about the weather when there is nothing to call."""
    return weather_question(rng)[0], NO_TOOL_ANSWER


# --- conversations -------------------------------------------------------------------------------

Turn = Callable[[random.Random], tuple[str, str]]
TURNS: tuple[tuple[str, Turn, float], ...] = (
    ("fact", fact_turn, 0.46),
    ("sum", sum_turn, 0.18),
    ("json", json_turn, 0.13),
    ("echo", echo_turn, 0.06),
    ("unknown", unknown_turn, 0.14),
    ("no tool", no_tool_turn, 0.03),
)
# What the first part of training leaves weak: differences, and facts taken for unknown.
REVISION_TURNS: tuple[tuple[str, Turn, float], ...] = (
    ("fact", even_fact_turn, 0.52),
    ("sum", sum_turn, 0.10),
    ("difference", difference_turn, 0.16),
    ("json", json_turn, 0.08),
    ("echo", echo_turn, 0.04),
    ("unknown", unknown_turn, 0.10),
)


def text_turn(
    rng: random.Random,
    with_tools: bool = False,
    turns_of: tuple[tuple[str, Turn, float], ...] = TURNS,
) -> tuple[str, list[Message]]:
    """One question and one answer in text."""
    options = [turn for turn in turns_of if not (with_tools and turn[0] == "no tool")]
    kind, make, _ = rng.choices(options, weights=[weight for _, _, weight in options])[0]
    question, answer = make(rng)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return kind, turns


def system_turn(rng: random.Random) -> list[Message]:
    """Often the documented system message, sometimes another one, sometimes none."""
    chance = rng.random()
    if chance < 0.4:
        return []
    text = SYSTEM_MESSAGES[0] if chance < 0.65 else rng.choice(SYSTEM_MESSAGES)
    return [{"role": "system", "content": text}]


def text_conversation(rng: random.Random) -> Conversation:
    """One to three questions without tools."""
    messages, kinds = system_turn(rng), []
    for _ in range(rng.choices([1, 2, 3], weights=[0.5, 0.3, 0.2])[0]):
        kind, turns = text_turn(rng)
        messages += turns
        kinds.append(kind)
    return Conversation(messages, kinds=kinds)


def tool_conversation(rng: random.Random) -> Conversation:
    """One to three questions with tools at hand, most of which need the weather function."""
    both = rng.random() < 0.4
    tools = [WEATHER_TOOL, FORECAST_TOOL] if both else [WEATHER_TOOL]
    if rng.random() < 0.12:
        tools.append(rng.choice(OTHER_TOOLS))
    if rng.random() < 0.15:
        rng.shuffle(tools)
    messages, kinds = system_turn(rng), []
    for _ in range(rng.choices([1, 2, 3], weights=[0.5, 0.35, 0.15])[0]):
        chance = rng.random()
        if chance < 0.35:
            kind, turns = text_turn(rng, with_tools=True)
        elif both and chance < 0.62:
            kind, turns = "forecast", forecast_turns(rng)
        else:
            kind, turns = "weather", weather_turns(rng)
        messages += turns
        kinds.append(kind)
        if turns[-1]["content"] is None:
            break
    return Conversation(messages, tools=tools, kinds=kinds)


def variant_conversation(rng: random.Random) -> Conversation:
    """A weather question for a function of another form, so that the model reads the schema."""
    tool, place_key, unit_key = rng.choice(VARIANT_TOOLS)
    turns = weather_turns(rng, tool["function"]["name"], place_key, unit_key)
    if rng.random() < 0.25:
        turns = text_turn(rng, with_tools=True)[1]
    return Conversation([*system_turn(rng), *turns], tools=[tool], kinds=["variant"])


def raw_conversation(rng: random.Random) -> Conversation:
    """A bare question without a chat template, as clients of a plain `generate` route send."""
    _, turns = text_turn(rng)
    question, answer = turns[0]["content"], turns[1]["content"]
    return Conversation(turns, raw=f"{question}\n{answer}", kinds=["raw"])


def conversations(seed: int, tool_share: float = 0.2) -> Iterator[Conversation]:
    """An endless stream of conversations, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        chance = rng.random()
        if chance < tool_share:
            made = variant_conversation if rng.random() < 0.2 else tool_conversation
            yield made(rng)
        elif chance < tool_share + 0.05:
            yield raw_conversation(rng)
        else:
            yield text_conversation(rng)


def revision(seed: int) -> Iterator[Conversation]:
    """The stream of the last part of training: single questions, and some of everything else."""
    rng, usual = random.Random(seed), conversations(seed)
    while True:
        if rng.random() < 0.4:
            yield next(usual)
        else:
            messages = system_turn(rng)
            for _ in range(rng.choice([1, 1, 2])):
                messages += text_turn(rng, turns_of=REVISION_TURNS)[1]
            yield Conversation(messages, kinds=["revision"])
