"""Casts: from the text of an environment variable to a checked value."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Cast = Callable[[str], Any]


def text(value: str) -> str:
    """Any text."""
    return value


def flag(value: str) -> bool:
    """true or false."""
    known = dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True)
    known |= dict.fromkeys(("false", "0", "no", "off", "f", "n"), False)
    if value.lower() not in known:
        raise ValueError("must be true or false")
    return known[value.lower()]


def one_of(*names: str) -> Cast:
    """Make a cast to one of several words."""

    def cast(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return cast


def integer(minimum: int, maximum: int | None = None) -> Cast:
    """Make a cast to an int within bounds, both included."""
    span = f"from {minimum} to {maximum}" if maximum is not None else f"of at least {minimum}"

    def cast(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"must be a whole number {span}") from None
        if number < minimum or (maximum is not None and number > maximum):
            raise ValueError(f"must be a whole number {span}")
        return number

    cast.__doc__ = f"A whole number {span}."
    return cast


def number(value: str) -> float:
    """A finite number."""
    try:
        parsed = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(parsed):
        raise ValueError("must be a finite number")
    return parsed


def pairs(value: str) -> dict[str, str]:
    """Names and values, as in a=b,c=d."""
    parts = [part.partition("=") for part in value.split(",")]
    named = {name.strip(): text.strip() for name, equals, text in parts if equals}
    if len(named) != len(parts) or not all((*named, *named.values())):
        raise ValueError("must be NAME=VALUE, several after commas")
    return named


def fraction(value: str) -> float:
    """A number above 0 and below 1."""
    if not 0 < number(value) < 1:
        raise ValueError("must be above 0 and below 1")
    return number(value)


def positive_fraction(value: str) -> float:
    """A number above 0, at most 1."""
    if not 0 < number(value) <= 1:
        raise ValueError("must be above 0 and at most 1")
    return number(value)


def factor(value: str) -> float:
    """A number of at least 1."""
    if number(value) < 1:
        raise ValueError("must be at least 1")
    return number(value)


def seconds(value: str) -> float:
    """A number of at least 0."""
    if number(value) < 0:
        raise ValueError("must be a number of seconds, at least 0")
    return number(value)


def gibibytes(value: str) -> float:
    """A number of at least 0."""
    if number(value) < 0:
        raise ValueError("must be at least 0")
    return number(value)


def rope_scaling(value: str) -> str:
    """linear; TGI's dynamic would make an answer depend on what else is in the batch."""
    if value.lower() == "dynamic":
        raise ValueError("must be linear, since with dynamic an answer depends on its neighbours")
    return str(choice("linear")(value))


def file(value: str) -> str:
    """A file that exists."""
    if not Path(value).is_file():
        raise ValueError("must be a file that exists")
    return value


def url(value: str) -> str:
    """A URL that begins with http:// or https://."""
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no port
        is_url = False
    if not is_url:
        raise ValueError("must be a URL such as http://localhost:4318")
    return value


def hosts(value: str) -> tuple[str, ...]:
    """Names of hosts, separated by commas."""
    names = tuple(name.strip().lower() for name in value.split(",") if name.strip())
    for name in names:
        bare = name.removeprefix("*.")
        is_name = all(part and part.replace("-", "").isalnum() for part in bare.split("."))
        if not is_name or bare.replace(".", "").isdigit():
            raise ValueError("must be names of hosts such as images.example.com, *.example.org")
    return names


def choice(*options: str) -> Cast:
    """Make a cast that accepts only these words."""

    def cast(value: str) -> str:
        if value.lower() not in options:
            raise ValueError(f"must be one of {', '.join(options)}")
        return value.lower()

    cast.__doc__ = f"One of {', '.join(options)}."
    return cast


def batch_strategy(value: str) -> str:
    """single_record or multi_record, also as SageMaker's API writes them (SingleRecord)."""
    words = {"singlerecord": "single_record", "multirecord": "multi_record"}
    return str(choice("single_record", "multi_record")(words.get(value.lower(), value)))


def gpu_count(value: str) -> int | None:
    """A whole number, or `all` for every visible GPU."""
    return None if value.lower() == "all" else int(integer(0)(value))


def max_memory(value: str) -> str:
    """Devices with the memory that weights may take there, such as `0=20GiB,cpu=60GiB`."""
    try:
        parse_max_memory(value)
    except (KeyError, ValueError, OverflowError):
        raise ValueError("must be such as 0=20GiB,1=20GiB,cpu=60GiB") from None
    return value


def parse_max_memory(value: str) -> dict[int | str, int]:
    """Read a checked MAX_MEMORY: bytes by the number of a GPU, or `cpu`."""
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    memory_by_device: dict[int | str, int] = {}
    for part in value.split(","):
        name, size = (word.strip() for word in part.split("="))
        device = "cpu" if name == "cpu" else int(name)
        num_bytes = int(float(size[:-3]) * units[size[-3:]])
        if num_bytes <= 0 or device in memory_by_device or (device != "cpu" and int(device) < 0):
            raise ValueError(part)
        memory_by_device[device] = num_bytes
    return memory_by_device


def dtype(value: str) -> str:
    """auto, float32, bfloat16 or float16."""
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
    return str(choice("auto", "float32", "bfloat16", "float16")(short.get(value.lower(), value)))


def kv_cache_dtype(value: str) -> str:
    """auto, fp8_e4m3fn or fp8_e5m2."""
    value = {"fp8": "fp8_e4m3fn", "fp8_e4m3": "fp8_e4m3fn"}.get(value.lower(), value)
    return str(choice("auto", "fp8_e4m3fn", "fp8_e5m2")(value))


def batch_sizes(value: str) -> tuple[int, ...]:
    """Sizes of batches, separated by commas; 0: none."""
    try:
        sizes = [int(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("must be batch sizes such as 1,2,4,8, or 0 for none") from None
    if sizes == [0]:
        return ()
    if not all(1 <= size <= 4096 for size in sizes):
        raise ValueError("must be batch sizes from 1 to 4096, or 0 for none")
    return tuple(sorted(set(sizes)))


def log_level(value: str) -> str:
    """debug, info, warning or error; or Python's number for it, as SageMaker's SDK sends.

    Of TGI's form `some_module=debug,info` the first level without a module counts, or else the
    first level.
    """
    directives = [part.strip() for part in value.split(",")]
    plain = [part for part in directives if "=" not in part]
    value = plain[0] if plain else directives[0].rpartition("=")[2]
    if value.isdigit():
        number = int(value)
        bounds = ((10, "debug"), (20, "info"), (30, "warning"))
        return next((word for bound, word in bounds if number <= bound), "error")
    words = {"trace": "debug", "warn": "warning", "off": "error"}
    words |= dict.fromkeys(("critical", "fatal"), "error")
    word = words.get(value.lower(), value)
    return str(choice("debug", "info", "warning", "error")(word))
