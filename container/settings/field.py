"""One field of a group of settings: how it is declared, read from an environment and shown."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from container.settings.casts import Cast

T = TypeVar("T")
Field = dataclasses.Field[Any]


def setting(
    default: T, *names: str, cast: Cast, meaning: str, secret: bool = False, wins: str | None = None
) -> T:
    """Declare a field: its variables, how they are read and what it means.

    `wins` is the variable that counts where several are set and differ; None: that is an error.
    """
    metadata = {"names": names, "cast": cast, "meaning": meaning, "secret": secret, "wins": wins}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


def read(field: Field, environ: Mapping[str, str]) -> Any:
    """Return the field's value in an environment, or its default. Raises ValueError."""
    texts = {name: environ[name].strip() for name in field.metadata["names"] if environ.get(name)}
    texts = {name: value for name, value in texts.items() if value}
    if not texts:
        return field.default
    parsed = {}
    for name, value in texts.items():
        try:
            parsed[name] = field.metadata["cast"](value)
        except ValueError as error:
            value_text = "the given value" if field.metadata["secret"] else repr(value)
            raise ValueError(f"{name}: {error}, not {value_text}") from None
    if field.metadata["wins"] in parsed:
        return parsed[field.metadata["wins"]]
    first, *others = parsed
    for other in others:
        if parsed[other] != parsed[first]:
            raise ValueError(f"{first} and {other} mean the same and differ; set one of them")
    return parsed[first]


def overridden(field: Field, environ: Mapping[str, str]) -> list[str]:
    """Return the variables that are set and do not count, because another one wins."""
    winner = field.metadata["wins"]
    if winner is None or not environ.get(winner, "").strip():
        return []
    others = (name for name in field.metadata["names"] if name != winner)
    return [name for name in others if environ.get(name, "").strip() not in ("", environ[winner])]


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as a person may see it: secrets masked."""

    name: str
    aliases: tuple[str, ...]
    value: str
    default: str
    meaning: str


def row(field: Field, value: object) -> SettingRow:
    """Describe a field and its value, a secret masked."""
    if field.metadata["secret"] and value is not None:
        value = "***"
    name, *aliases = field.metadata["names"]
    return SettingRow(
        name, tuple(aliases), _word(value), _word(field.default), field.metadata["meaning"]
    )


def _word(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)
