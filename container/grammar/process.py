"""A grammar process: compiles one grammar and computes the bitmasks of all who follow it.

The fork server forks one for each grammar. Native code reads here what clients wrote, so the
process has limits of memory and time, and the kernel ends it where it goes over them; nothing but
the requests with this grammar is lost.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from container.errors import InvalidParameter, ServingError
from container.grammar.complexity import complexity_hint
from container.grammar.message import message_grammar
from container.grammar.protocol import (
    MAX_MESSAGE,
    MEMORY_EXIT,
    UNFORESEEN_EXIT,
    Advance,
    Advanced,
    Copy,
    Drop,
    Extend,
    Failed,
    FromProcess,
    GrammarLimits,
    NextMask,
    Started,
    ToProcess,
    encode,
    to_process_decoder,
)
from container.grammar.shape import MessageShape, decode_shape
from container.grammar.spec import reason_of
from container.messages.common import ErrorData

# Deeply nested grammars are read by recursion.
STACK_BYTES = 256 * 2**20
# Compiling yields the processor to the engine; a bitmask that a step waits for does not.
COMPILE_NICENESS = 10
# Python's own recursion needs no stack of its thread; the limits of the process end it.
RECURSION_LIMIT = 100_000
# A bitmask that takes longer is slow; any other gives so much of the time of slow ones back.
FAST_S = 0.25
# What the first slow bitmask may take, however long the compile took.
LEAST_S = 0.5
# The library's limits. It enforces them itself in most places, long before those of the process.
LIMITS = LLParserLimits(verbose_errors=False, max_lexer_states=50_000)


def run(
    channel: socket.socket,
    text: str,
    tokenizer: LLTokenizer,
    token_ids: dict[str, int],
    limits: GrammarLimits,
) -> None:
    """Serve the grammar `text` of container.grammar.shape until the engine closes the channel."""
    _limit_process(limits)
    channel.send(encode(Started()))
    followers = _Followers(channel, tokenizer, limits.timeout_s)
    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=followers.serve, args=(text, token_ids), daemon=True).start()
    # This thread learns at once that the engine has closed the channel, even during a compile.
    hangup = select.poll()
    hangup.register(channel, 0)
    hangup.poll()


def _limit_process(limits: GrammarLimits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + limits.memory_bytes + 2 * STACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # the first to go where the machine's memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")


class _Matcher:
    """The state of one sequence, with its tokens, so that it can be built again."""

    def __init__(self, inner: LLMatcher, token_ids: list[int], budget: "_Budget") -> None:
        self.inner = inner
        self.token_ids = token_ids
        self.budget = budget


class _Budget:
    """The processor seconds that native code may take for a sequence; fast bitmasks give some back.

    One bitmask alone may not take longer than the full budget by the clock, either.
    """

    def __init__(self, full_s: float, left_s: float) -> None:
        self._full_s = full_s
        self._left_s = left_s

    def copy(self) -> "_Budget":
        """Return a budget with as much left, for another sequence."""
        return _Budget(self._full_s, self._left_s)

    @contextlib.contextmanager
    def spend(self) -> Iterator[None]:
        """Have the kernel end this process if native code takes longer than what is left."""
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self._left_s)
        signal.setitimer(signal.ITIMER_REAL, self._full_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            took_s = time.process_time() - began
            left_s = self._left_s + (FAST_S if took_s < FAST_S else -took_s)
            self._left_s = min(self._full_s, max(LEAST_S, left_s))


class _Followers:
    """Owns the compiled grammar and the matchers of the sequences that follow it."""

    def __init__(self, channel: socket.socket, tokenizer: LLTokenizer, timeout_s: float) -> None:
        self._channel = channel
        self._tokenizer = tokenizer
        self._timeout_s = timeout_s
        self._grammar = ""
        self._shape = MessageShape()
        self._matchers: dict[int, _Matcher] = {}

    def serve(self, text: str, token_ids: dict[str, int]) -> None:
        """Compile the grammar, then follow the engine's messages until this process ends."""
        # In a thread of its own, since a thread that has become nicer remains so.
        compiling = threading.Thread(target=self._compile, args=(text, token_ids), daemon=True)
        compiling.start()
        compiling.join()
        with _exit_codes():
            while frame := self._channel.recv(MAX_MESSAGE):
                self._handle(to_process_decoder.decode(frame))

    def _handle(self, message: ToProcess) -> None:
        match message:
            case Copy(number, source):
                self._copy(number, source)
            case Advance(number, token_id):
                self._advance(number, token_id)
            case Extend(number, token_ids):
                self._extend(number, token_ids)
            case Drop(number):
                self._matchers.pop(number, None)

    def _compile(self, text: str, token_ids: dict[str, int]) -> None:
        """Send the grammar's first bitmask, or the reason why there is none."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPILE_NICENESS)
        budget = _Budget(self._timeout_s, self._timeout_s)
        with _exit_codes(), budget.spend():
            try:
                self._shape = decode_shape(text)
                self._grammar = message_grammar(self._shape, token_ids)
                matcher = self._matchers[0] = _Matcher(self._build([]), [], budget)
                self._send(NextMask(0, self._mask(matcher)))
            except ServingError as error:
                self._fail(0, error)
            except RecursionError:
                self._fail(0, InvalidParameter("the grammar is nested too deeply"))

    def _copy(self, number: int, source: int) -> None:
        matcher = self._matchers[source]
        self._matchers[number] = _Matcher(
            matcher.inner.deep_copy(), [*matcher.token_ids], matcher.budget.copy()
        )

    def _advance(self, number: int, token_id: int) -> None:
        """Append a token; send whether the grammar is complete, then the next bitmask."""
        matcher = self._matchers.get(number)
        if matcher is None:
            return  # it has failed
        with matcher.budget.spend():
            try:
                self._consume(matcher, [token_id])
                is_complete = matcher.inner.is_stopped()
                self._send(Advanced(number, is_complete))
                if not is_complete:
                    self._send(NextMask(number, self._mask(matcher)))
            except ServingError as error:
                del self._matchers[number]
                self._fail(number, error)

    def _extend(self, number: int, token_ids: list[int]) -> None:
        """Append tokens that another process has followed; a failure shows in the next answer."""
        matcher = self._matchers[number]
        with matcher.budget.spend(), contextlib.suppress(ServingError):
            self._consume(matcher, token_ids)

    def _consume(self, matcher: _Matcher, token_ids: list[int]) -> None:
        matcher.token_ids += token_ids
        matcher.inner.consume_tokens(token_ids)
        if matcher.inner.is_error():
            self._build_again(matcher)

    def _mask(self, matcher: _Matcher) -> bytes:
        """Compute the next bitmask. Raises InvalidParameter if there is no next token."""
        mask = matcher.inner.compute_bitmask()
        if matcher.inner.is_error() and matcher.token_ids:
            self._build_again(matcher)
            mask = matcher.inner.compute_bitmask()
        if matcher.inner.is_error():
            raise self._too_complex()
        if not mask.strip(b"\0"):
            raise InvalidParameter("the grammar cannot be followed: no token can come next")
        return mask

    def _build(self, token_ids: list[int]) -> LLMatcher:
        inner = LLMatcher(self._tokenizer, self._grammar, log_level=0, limits=LIMITS)
        if inner.is_error():
            raise InvalidParameter(f"grammar is not valid: {reason_of(inner.get_error())}")
        inner.consume_tokens(token_ids)
        return inner

    def _build_again(self, matcher: _Matcher) -> None:
        """Rebuild a failed matcher with a new lexer. Raises InvalidParameter if it fails again.

        Copies share one lexer, whose states are limited: another sequence may have used them up.
        """
        self._matchers[0].inner = self._build([])
        matcher.inner = self._build(matcher.token_ids)
        if matcher.inner.is_error():
            raise self._too_complex()

    def _too_complex(self) -> ServingError:
        hint, field = complexity_hint(self._shape)
        return InvalidParameter(f"the grammar cannot be followed on{hint}", field=field)

    def _fail(self, number: int, error: ServingError) -> None:
        self._send(Failed(number, ErrorData.from_error(error)))

    def _send(self, message: FromProcess) -> None:
        """Send once the engine, which may be in a long step, has read enough; no budget pays."""
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        self._channel.send(encode(message))
        signal.setitimer(signal.ITIMER_REAL, left_s)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """End the process with a code that says why, where an exception would end its thread."""
    try:
        yield
    except MemoryError:
        os._exit(MEMORY_EXIT)
    except BaseException:  # a form that no check foresaw: the engine refuses the request
        os._exit(UNFORESEEN_EXIT)
