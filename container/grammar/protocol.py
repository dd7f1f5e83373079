"""Messages between the engine, the fork server and the grammar processes; and their limits.

Small messages over sockets that keep message boundaries; texts of any length in anonymous files.
"""

import signal

import msgspec

from container.errors import InvalidParameter
from container.messages.common import ErrorData

# A message: a bitmask of the largest vocabulary, 2 million ids, fits.
MAX_MESSAGE = 256 * 1024
READY = b"ready"
# The exit codes of a process that ran out of its memory, and of one that no check foresaw.
MEMORY_EXIT, UNFORESEEN_EXIT = 101, 102
# How native code ends that gets no memory, or whose stack is used up.
MEMORY_CODES = (MEMORY_EXIT, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
# How a process ends that has used up its time by the clock, or its processor time.
TIMEOUT_CODES = (-signal.SIGALRM, -signal.SIGPROF)


class GrammarLimits(msgspec.Struct, frozen=True):
    """Limits of each grammar's process.

    `timeout_s`: for compiling it with its first bitmask. A later bitmask may take what processor
    time is left of it; fast ones give some back.
    `memory_bytes`: the most memory that the process may allocate.
    """

    timeout_s: float = 8.0
    memory_bytes: int = 512 * 2**20


def limit_error(exit_code: int | None, limits: GrammarLimits) -> InvalidParameter | None:
    """Return the error for a grammar that ended its process; None if anything else ended it.

    `exit_code` is a negative signal for a process that was killed; None if it is not known.
    """
    if exit_code in TIMEOUT_CODES:
        return InvalidParameter(
            "the grammar is too complex: it takes more than "
            f"{limits.timeout_s:g} s (GRAMMAR_TIMEOUT); make it smaller"
        )
    if exit_code in MEMORY_CODES:
        megabytes = limits.memory_bytes // 2**20
        return InvalidParameter(
            "the grammar is too large or nested too deeply: it takes more than "
            f"{megabytes} MB (GRAMMAR_MEMORY); make it smaller"
        )
    if exit_code == UNFORESEEN_EXIT:
        return InvalidParameter("the grammar cannot be compiled; make it simpler")
    return None


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


class Extend(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """To a process: append tokens to a matcher, without an answer."""

    number: int
    token_ids: list[int]


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


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """From the fork server: a process has ended, with an exit code or by a signal, negative."""

    code: int


ToProcess = Advance | Copy | Extend | Drop
FromProcess = Started | Advanced | NextMask | Failed | Ended
encode = msgspec.msgpack.Encoder().encode
to_process_decoder = msgspec.msgpack.Decoder(ToProcess)
from_process_decoder = msgspec.msgpack.Decoder(FromProcess)
