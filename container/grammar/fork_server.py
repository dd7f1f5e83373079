"""The fork server of grammars: has the model's tokenizer, and forks a process for each grammar.

The engine starts it: `python -m container.grammar.fork_server FD`, its arguments as JSON on stdin.
It runs no native code on anything that a client wrote. Its process group ends with it.
"""

import gc
import os
import signal
import socket
import sys
from typing import NoReturn

import msgspec
from llguidance import LLTokenizer

from container.grammar import process
from container.grammar.protocol import READY, ForkServerArgs


def main() -> None:
    """Load the tokenizer, then serve until the engine closes the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    args = msgspec.json.decode(sys.stdin.buffer.read(), type=ForkServerArgs)
    try:
        # A model without an end token stops where its grammar ends.
        tokenizer = LLTokenizer(
            args.tokenizer, n_vocab=args.vocabulary, eos_token=args.end_token_ids or None
        )
    except Exception as error:  # the library documents no exceptions
        control.send(f"{type(error).__name__}: {error}"[:2000].encode())
        return
    control.send(READY)
    # Nothing that native code prints about a client's grammar reaches the log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    gc.freeze()  # so that forks share these pages
    while (received := socket.recv_fds(control, 16, 2))[0]:
        channel, text = received[1]
        if os.fork() == 0:
            control.close()
            _serve(channel, text, tokenizer, args)
        os.close(channel)
        os.close(text)
    os.killpg(0, signal.SIGKILL)


def _serve(channel: int, text: int, tokenizer: LLTokenizer, args: ForkServerArgs) -> NoReturn:
    try:
        with open(text) as file:
            grammar = file.read()
        process.run(socket.socket(fileno=channel), grammar, tokenizer, args.token_ids, args.limits)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
