"""What the engine of a model needs of texts: its tokenizer, its images and the ids that end."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from container.images.reader import ImageReader
from container.model.checks.check_prompt import encode_check_prompt
from container.model.hf_config import text_config
from container.model.loading.config import end_token_ids, is_multimodal, turn_end_ids
from container.settings.model import ModelSettings
from container.text.templates.renderer import TemplateRenderer
from container.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EngineTexts:
    """The tokenizer, the reader of images if the model takes some, and what ends completions.

    `end_ids` end a completion. `check_ids` are the prompt of the checks at the start, None without
    a suitable one. `vocabulary` is the number of ids that the model has.
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
