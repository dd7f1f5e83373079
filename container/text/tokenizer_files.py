"""Loads and serialises the files of a tokenizer."""

import json
from copy import copy
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from container.errors import ModelLoadError
from container.files import read_json, read_text

# The largest vocabularies of models have some 300,000 tokens; a bitmask of this many fits into a
# message to a grammar process.
MAX_IDS = 2**20


def load_tokenizer(
    folder: Path, trust_remote_code: bool, template_path: str | None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder; `template_path` overrides its chat template.

    Raises ModelLoadError.
    """
    try:
        inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files fail anywhere in transformers
        raise ModelLoadError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    _refuse_large_ids(folder, inner)
    # The server enforces its own limits; the tokenizer's limit would only log a warning.
    inner.model_max_length = int(1e30)
    # Older vision-language models store the template that supports images here.
    template_file = folder / "chat_template.json"
    if template_path is None and template_file.is_file():
        template_path = str(template_file)
    if template_path is not None:
        inner.chat_template = _read_template(Path(template_path))
    return inner


def serialise(inner: PreTrainedTokenizerFast) -> str:
    """Serialise a fast tokenizer as tokenizer.json, added tokens included.

    Writes a decoder of T5's kind as the equal steps that other libraries know.
    """
    backend = copy(inner.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    serialised: str = backend.to_str()
    fields = json.loads(serialised)
    if (fields.get("decoder") or {}).get("type") != "Metaspace":
        return serialised
    return json.dumps(fields | {"decoder": _metaspace_steps(fields["decoder"])})


def _refuse_large_ids(folder: Path, inner: PreTrainedTokenizerBase) -> None:
    """Raise ModelLoadError for an id that no model has: tables by id would fill the memory."""
    token, largest = max(inner.get_vocab().items(), key=itemgetter(1), default=("", 0))
    if largest >= MAX_IDS:
        raise ModelLoadError(
            f"{folder}: the tokenizer has the token {token[:100]!r} with the id {largest}; "
            f"the largest that can be served is {MAX_IDS - 1}"
        )


def _read_template(path: Path) -> str:
    """Read a .jinja file, or the `chat_template` of a tokenizer_config.json."""
    try:
        if path.suffix == ".jinja":
            return read_text(path)
        template = read_json(path)["chat_template"]
        if isinstance(template, list):  # several, each with a name
            template = {
                named_template["name"]: named_template["template"] for named_template in template
            }["default"]
        if not isinstance(template, str):
            raise TypeError("`chat_template` is not a string")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelLoadError(
            f"TOKENIZER_CONFIG_PATH={path}: no chat template can be read from it: "
            f"{type(error).__name__}: {error}"
        ) from error
    return template


def _metaspace_steps(decoder: dict[str, Any]) -> dict[str, Any]:
    """Return a Metaspace decoder as a sequence of simple ones."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if decoder.get("prepend_scheme") != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
