"""Grammar clients of the demo model, and how tests follow a constraint."""

import os
import time

from container.engine.sequence import Constraint
from container.grammar.client import GrammarClient
from container.grammar.forms import Answer
from container.grammar.protocol import ForkServerArgs, GrammarLimits
from container.grammar.shape import MessageShape, encode_shape
from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL

END = 2
VOCABULARY = 2048
TOKENIZER = Tokenizer.from_folder(DEMO_MODEL)


def args(timeout_s: float, vocabulary: int = VOCABULARY) -> ForkServerArgs:
    limits = GrammarLimits(timeout_s, 256 * 2**20)
    return ForkServerArgs(TOKENIZER.serialise(), vocabulary, [END], {}, limits)


def start(client: GrammarClient, answer: Answer) -> Constraint:
    return client.compile(encode_shape(MessageShape(answer=answer)))


def wait(client: GrammarClient, constraint: Constraint) -> Constraint:
    client.wait(lambda: constraint.is_ready and constraint.is_advanced, 60.0)
    assert constraint.is_ready
    return constraint


def follow(client: GrammarClient, constraint: Constraint, text: str) -> int:
    """Accept a text's tokens until the grammar fails; return how many it took."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    for count, token_id in enumerate(ids):
        constraint.accept(token_id)
        if wait(client, constraint).error is not None:
            return count
    return len(ids)


def await_end(pid: int) -> None:
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < until, f"process {pid} lives on"
        time.sleep(0.01)


def children(client: GrammarClient) -> list[int]:
    """The grammar processes, in the order of their start."""
    server = client._server.pid
    with open(f"/proc/{server}/task/{server}/children") as file:
        return [int(pid) for pid in file.read().split()]
