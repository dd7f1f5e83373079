"""The fork server of grammars: has the model's tokenizer, and forks a process for each grammar.

The engine starts it: `python -m container.grammar.fork_server FD`, its arguments as JSON on stdin.
It runs no native code on anything that a client wrote. It tells the engine how each process has
ended, and kills those whose channel the engine has closed. Its process group ends with it.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from typing import NoReturn

import msgspec
from llguidance import LLTokenizer

from container.grammar import process
from container.grammar.protocol import READY, Ended, ForkServerArgs, encode

# More than any channel's own; the kernel grants at least twice the usual size.
SEND_BUFFER_BYTES = 4 * 2**20


def main() -> None:
    """Load the tokenizer, then serve until the engine closes the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    _ForkServer(control, tokenizer, args).serve()
    os.killpg(0, signal.SIGKILL)


class _ForkServer:
    """Owns the grammar processes; has a copy of each one's end of its channel."""

    def __init__(self, control: socket.socket, tokenizer: LLTokenizer, args: ForkServerArgs):
        self._control = control
        self._tokenizer = tokenizer
        self._args = args
        self._channels: dict[int, socket.socket] = {}  # by process id
        self._pids: dict[int, int] = {}  # by the descriptor of the channel
        self._wakeup, self._wakeup_end = os.pipe2(os.O_NONBLOCK)
        self._events = select.epoll()
        for descriptor in (control.fileno(), self._wakeup):
            self._events.register(descriptor, select.EPOLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_end)

    def serve(self) -> None:
        """Fork, report and kill until the engine closes the control socket."""
        while True:
            ready = {descriptor for descriptor, _ in self._events.poll()}
            # First, since a report closes descriptors, and a fork may get their numbers.
            for descriptor in ready - {self._wakeup, self._control.fileno()}:
                self._kill(descriptor)
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._report_ends()
            if self._control.fileno() in ready and not self._fork():
                return

    def _fork(self) -> bool:
        """Fork as the next message asks; return whether there was one."""
        message, received, _, _ = socket.recv_fds(self._control, 16, 2)
        if not message:
            return False
        channel, text = socket.socket(fileno=received[0]), received[1]
        pid = os.fork()
        if pid == 0:
            self._serve_grammar(channel, text)
        os.close(text)
        self._channels[pid], self._pids[channel.fileno()] = channel, pid
        self._events.register(channel.fileno(), 0)  # that is: EPOLLHUP
        return True

    def _serve_grammar(self, channel: socket.socket, text: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._close()
            with open(text) as file:
                grammar = file.read()
            process.run(channel, grammar, self._tokenizer, self._args.token_ids, self._args.limits)
        finally:
            os._exit(0)

    def _close(self) -> None:
        """Close all descriptors, since a process that kept a channel would hide its end."""
        self._events.close()
        self._control.close()
        os.close(self._wakeup)
        os.close(self._wakeup_end)
        for channel in self._channels.values():
            channel.close()

    def _kill(self, descriptor: int) -> None:
        """Kill a process whose channel the engine has closed; a stopped one would never end."""
        if descriptor in self._pids:
            self._events.unregister(descriptor)
            os.kill(self._pids[descriptor], signal.SIGKILL)

    def _report_ends(self) -> None:
        while self._channels:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            channel = self._channels.pop(pid)
            del self._pids[channel.fileno()]
            with channel, contextlib.suppress(OSError):  # the engine may not listen any more
                code = os.waitstatus_to_exitcode(status)
                # The process may have filled it, and died while it waited for the engine.
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                channel.send(encode(Ended(code)), socket.MSG_DONTWAIT)


if __name__ == "__main__":
    main()
