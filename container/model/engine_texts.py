"""Loads what an engine needs for texts, and starts the fork server of grammars with it."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from container.grammar.client import GrammarClient, GrammarServerFailed
from container.grammar.protocol import ForkServerArgs, GrammarLimits
from container.images.reader import ImageReader
from container.model.checks.check_prompt import encode_check_prompt
from container.model.hf_config import text_config
from container.model.loading.config import end_token_ids, is_multimodal, turn_end_ids
from container.settings.model import ModelSettings
from container.text.templates.renderer import TemplateRenderer
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineTexts:
    """The tokenizer, the reader of images if the model takes some, and what ends completions.

    `end_ids` end a completion. `check_ids` are the prompt of the checks at the start, None without
    a suitable one. `vocabulary` is the number of the model's logits.
    """

    tokenizer: Tokenizer
    reader: ImageReader | None
    end_ids: frozenset[int]
    check_ids: list[int] | None
    vocabulary: int


def load_texts(
    settings: ModelSettings,
    folder: Path,
    config: PretrainedConfig,
    renderer: TemplateRenderer | None = None,
) -> EngineTexts:
    """Load the tokenizer and the image processor of a folder, and find the ids that end.

    `renderer` is a renderer of chat templates that was started earlier. Raises ModelLoadError.
    """
    tokenizer = Tokenizer.from_folder(
        folder,
        trust_remote_code=settings.trust_remote_code,
        template_path=settings.tokenizer_config_path,
        renderer=renderer,
    )
    ends = end_token_ids(folder, config, tokenizer.end_ids)
    reader = ImageReader.from_folder(folder, tokenizer) if is_multimodal(folder, config) else None
    tokenizer.start_renderer()
    vocabulary = text_config(config).vocab_size
    ends |= turn_end_ids(tokenizer, ends, vocabulary)
    return EngineTexts(tokenizer, reader, ends, encode_check_prompt(tokenizer), vocabulary)


def start_grammars(texts: EngineTexts, limits: GrammarLimits) -> GrammarClient | None:
    """Start the fork server of grammars; None where the tokenizer or the system allows none.

    It loads the tokenizer while the weights are loaded; `checked_grammars` waits for it.
    """
    tokenizer = texts.tokenizer
    if not tokenizer.is_fast:
        return None
    if not sys.platform.startswith("linux"):
        log.warning("structured output is off: its processes need Linux")
        return None
    num_ids = max(texts.vocabulary, tokenizer.num_ids)  # a model may have fewer logits
    args = ForkServerArgs(
        tokenizer.serialise(),
        num_ids,
        sorted(token_id for token_id in texts.end_ids if 0 <= token_id < num_ids),
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
