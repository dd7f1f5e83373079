"""Starts the fork server of grammars with a model's tokenizer, and checks that it can use it."""

import logging
import sys

from container.grammar.client import GrammarClient, GrammarServerFailed
from container.grammar.protocol import ForkServerArgs, GrammarLimits
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def start_grammars(
    tokenizer: Tokenizer, vocabulary: int, end_token_ids: frozenset[int], limits: GrammarLimits
) -> GrammarClient | None:
    """Start the fork server of grammars; None where the tokenizer or the system allows none.

    It loads the tokenizer while the weights are loaded; `checked_grammars` waits for it.
    `vocabulary` is the number of the model's logits; the tokenizer may have more tokens.
    """
    if not tokenizer.is_fast:
        return None
    if not sys.platform.startswith("linux"):
        log.warning("structured output is off: its processes need Linux")
        return None
    num_ids = max(vocabulary, tokenizer.num_ids)
    args = ForkServerArgs(
        tokenizer.serialise(),
        num_ids,
        sorted(token_id for token_id in end_token_ids if 0 <= token_id < num_ids),
        tokenizer.added_tokens,
        limits,
    )
    return GrammarClient(args)


def checked_grammars(client: GrammarClient | None) -> GrammarClient | None:
    """Wait until the fork server has the tokenizer; None, with a warning, if it cannot use it."""
    if client is None:
        return None
    try:
        client.check()
    except GrammarServerFailed as error:
        client.close()
        log.warning(
            "grammars: the tokenizer cannot be used for them (%s); requests with a grammar, a "
            "response format or a forced call are refused", error,
        )  # fmt: skip
        return None
    return client
