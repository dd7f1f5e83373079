"""The prompt of the checks at start, in the ids of the model's own tokenizer."""

import logging

from container.errors import TemplateFailed
from container.model.reference_check import NUM_IDS
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# The prompt of the checks at start; only its first tokens are used.
CHECK_TEXT = (
    "Which three rivers are the longest in Europe, and through how many countries does each of "
    "them flow before it reaches the sea? Answer in two or three short sentences."
)
MIN_CHECK_IDS = 12


def encode_check_prompt(tokenizer: Tokenizer) -> list[int] | None:
    """Encode the check prompt with the chat template, if any; None if it has too few tokens."""
    text, has_special_tokens = CHECK_TEXT, False
    if tokenizer.has_chat_template:
        try:
            text = tokenizer.render_chat([{"role": "user", "content": CHECK_TEXT}])
            has_special_tokens = True
        except TemplateFailed as error:
            log.debug("chat template failed, checking the model on plain text: %s", error)
        finally:
            tokenizer.stop_renderer()  # the engine renders nothing else
    ids = tokenizer.encode(text, add_special_tokens=not has_special_tokens)
    return ids[:NUM_IDS] if len(ids) >= MIN_CHECK_IDS else None
