"""Messages between the engine, the fork server and the grammar processes; and their limits.

Small messages over sockets that keep message boundaries; texts of any length in anonymous files.
"""

import msgspec

from container.messages.common import ErrorData

# A message: a bitmask of the largest vocabulary, 2 million ids, fits.
MAX_MESSAGE = 256 * 1024
READY = b"ready"


class GrammarLimits(msgspec.Struct, frozen=True):
    """Limits of each grammar's process.

    `timeout_s`: for compiling it with its first bitmask, and for each later bitmask.
    `memory_bytes`: the most memory that the process may allocate.
    """

    timeout_s: float = 8.0
    memory_bytes: int = 512 * 2**20


class ForkServerArgs(msgspec.Struct, frozen=True):
    """The model's tokenizer, as tokenizer.json, and the limits.

    `vocabulary` is the number of ids that a bitmask covers; `token_ids` has the added tokens.
    """

    tokenizer: str
    vocabulary: int
    end_token_ids: list[int]
    token_ids: dict[str, int]
    limits: GrammarLimits


class Advance(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """To a process: append a token to a matcher."""

    number: int
    token_id: int


class Copy(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """To a process: make a matcher in the state of another; 0 is the grammar's start."""

    number: int
    source: int


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """To a process: forget a matcher."""

    number: int


class Started(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """From a process: it has been forked and begins to compile."""


class Advanced(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """From a process: a matcher has taken its token; `is_complete` if no other can follow."""

    number: int
    is_complete: bool


class NextMask(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """From a process: a matcher's next bitmask, one bit for each id, in 32-bit words."""

    number: int
    mask: bytes


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """From a process: a matcher cannot go on; 0 if the grammar cannot be compiled."""

    number: int
    error: ErrorData


ToProcess = Advance | Copy | Drop
FromProcess = Started | Advanced | NextMask | Failed
encode = msgspec.msgpack.Encoder().encode
to_process_decoder = msgspec.msgpack.Decoder(ToProcess)
from_process_decoder = msgspec.msgpack.Decoder(FromProcess)
