"""Selects the task of a model that does not only generate text: by HF_TASK, else by config.json.

Names are those of transformers' pipelines and of the Hugging Face inference toolkit. Embeddings and
rerank are not here: the embedder serves them (container.settings.model.EMBEDDING_TASKS).
"""

import difflib
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from container.errors import ConfigError
from container.files import read_json
from container.settings.model import EMBEDDING_TASKS, ModelSettings
from container.settings.process_env import SAGEMAKER_MODEL_DIR, model_root

# Pipelines of transformers 5.
PIPELINES = frozenset({
    "audio-classification", "automatic-speech-recognition", "depth-estimation",
    "document-question-answering", "fill-mask", "image-classification",
    "image-feature-extraction", "image-segmentation", "keypoint-matching", "mask-generation",
    "object-detection", "table-question-answering", "text-classification", "text-to-audio",
    "token-classification", "video-classification", "zero-shot-audio-classification",
    "zero-shot-classification", "zero-shot-image-classification", "zero-shot-object-detection",
})  # fmt: skip
# transformers 5 has no such pipelines: the engine generates, or container.handlers answers.
GENERATED = {"summarization": "summary_text", "translation": "translation_text",
             "text2text-generation": "generated_text"}  # fmt: skip
OWN = frozenset({"question-answering"})
ENGINE_TASKS = frozenset({"text-generation", "conversational"})
OTHER_NAMES = {"sentiment-analysis": "text-classification", "ner": "token-classification",
               "summarisation": "summarization", "text-to-speech": "text-to-audio"}  # fmt: skip
# The end of an architecture's name, as in BertForSequenceClassification.
BY_ARCHITECTURE = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
}


def served_task(settings: ModelSettings) -> str | None:
    """Return the task that a handler serves, or None for text generation and embeddings.

    Raises ConfigError for a name that is not known.
    """
    if settings.task is None:
        return _inferred(settings)
    task = settings.task.lower()
    task = OTHER_NAMES.get(task, task)
    if task in EMBEDDING_TASKS or task in ENGINE_TASKS:
        return None
    known = PIPELINES | OWN | GENERATED.keys()
    if task.startswith("translation_"):  # translation_en_to_de, as the toolkit has it
        return "translation"
    if task not in known:
        every = sorted({*known, *ENGINE_TASKS, *EMBEDDING_TASKS})
        near = difflib.get_close_matches(task, every, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(every)}"
        raise ConfigError([f"HF_TASK={settings.task} is not known{hint}"])
    return task


def needs_engine(task: str | None) -> bool:
    """Whether the engine generates the task's answers."""
    return task is None or task in GENERATED


def generated_prefix(settings: ModelSettings) -> str:
    """Return the prefix of each text for HF_TASK by the model's config, as T5's have it."""
    task_params = _config(settings).get("task_specific_params") or {}
    return str((task_params.get((settings.task or "").lower()) or {}).get("prefix") or "")


def _inferred(settings: ModelSettings) -> str | None:
    names = _config(settings).get("architectures") or []
    for name in names if isinstance(names, list) else []:
        for ending, task in BY_ARCHITECTURE.items():
            if str(name).endswith(ending):
                return task
    return None


def _config(settings: ModelSettings) -> dict[str, Any]:
    """Read the model's config.json; empty if it cannot be read, which the loader reports later."""
    source = settings.model_id or str(SAGEMAKER_MODEL_DIR)
    folder = Path(source).expanduser()
    path = model_root(folder) / "config.json"
    try:
        if not folder.is_dir() and source.count("/") == 1 and not folder.is_absolute():
            path = Path(
                hf_hub_download(
                    source, "config.json", revision=settings.revision, token=settings.hf_token
                )
            )
        config = read_json(path)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return {}
    return config if isinstance(config, dict) else {}
