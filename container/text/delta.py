"""The pieces of a parsed message."""

from dataclasses import dataclass
from enum import Enum, auto


class DeltaKind(Enum):
    """The part of the message that a delta extends."""

    REASONING = auto()
    CONTENT = auto()
    CALL = auto()  # a new call; the text is its name
    ARGUMENTS = auto()  # more of the last call's arguments


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a message. `call_index` is the index of its tool call, from 0; -1 for none."""

    kind: DeltaKind
    text: str
    call_index: int = -1
