"""Models for HF_TASK: transformers' pipelines, question answering, and generated tasks.

Each is called like a pipeline, `model(inputs, **parameters)`, by the default predict_fn or by the
user's own. Several invocations at a time are gathered into one call
(container.handlers.tasks.micro_batcher).
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

from container.errors import ModelLoadError, one_line
from container.handlers.engine_model import EngineModel
from container.handlers.tasks.micro_batcher import MicroBatcher
from container.handlers.tasks.question_answering import QuestionAnswering
from container.handlers.tasks.selection import GENERATED, OWN

log = logging.getLogger(__name__)

Model = Callable[..., Any]
# Most inputs of one body that are generated at a time.
SIDE_BY_SIDE = 16
# Tasks whose pipeline gives the model a text of any length. Others cut it themselves.
WHOLE_TEXT_TASKS = frozenset({"text-classification", "fill-mask"})


def load_pipeline(task: str, folder: Path, *, gpu_id: int | None, trust_remote_code: bool) -> Model:
    """Load a model for a task. Raises ModelLoadError."""
    device = torch.device("cpu")
    if gpu_id is not None and torch.cuda.is_available():
        device = torch.device("cuda", gpu_id)
    try:
        if task in OWN:
            return QuestionAnswering(folder, device, trust_remote_code=trust_remote_code)
        make: Any = pipeline  # its types know only names that are written out
        loaded = make(task, model=str(folder), device=device, trust_remote_code=trust_remote_code)
    except Exception as error:  # a checkpoint that does not fit fails anywhere in transformers
        log.exception("HF_TASK=%s: loading the pipeline failed", task)
        reason = one_line(error)
        raise ModelLoadError(f"HF_TASK={task}: {folder} cannot be loaded: {reason}") from error
    return PipelineModel(loaded, task)


class PipelineModel:
    """A thread-safe pipeline: concurrent calls run as one batch."""

    # A pipeline raises ValueError and the like for inputs that it does not support.
    raises_client_errors = True

    def __init__(self, loaded: Any, task: str) -> None:
        self._pipeline = loaded
        self._task = task
        self._batcher = MicroBatcher(self._run)
        self._max_tokens = _max_tokens(loaded) if task in WHOLE_TEXT_TASKS else None

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Answer as the pipeline would. Raises ValueError for a text that is too long."""
        if self._max_tokens is not None and not parameters.get("truncation"):
            for text in inputs if isinstance(inputs, list) else [inputs]:
                self._check_length(text, self._max_tokens)
        return self._batcher.call(inputs, parameters)

    def _check_length(self, text: Any, max_tokens: int) -> None:
        if not isinstance(text, str):
            return  # for the pipeline to read or refuse
        num_tokens = len(self._pipeline.tokenizer(text)["input_ids"])
        if num_tokens > max_tokens:
            raise ValueError(
                f"`inputs` has a text of {num_tokens} tokens; the model takes at most "
                f"{max_tokens}: shorten it, or set `truncation` to true in `parameters`"
            )

    def _run(self, inputs: list[Any], parameters: dict[str, Any]) -> list[Any]:
        """Answer several inputs, each as if it were alone."""
        with torch.inference_mode():
            if len(inputs) == 1:
                return [self._pipeline(inputs[0], **parameters)]
            results = list(self._pipeline(inputs, batch_size=len(inputs), **parameters))
        # For one text, and without top_k, this pipeline alone answers a list of one.
        if self._task == "text-classification" and "top_k" not in parameters:
            return [[result] for result in results]
        return results


def _max_tokens(loaded: Any) -> int | None:
    """Return the most tokens that a pipeline's model takes; None if it does not say."""
    longest = getattr(loaded.model.config, "max_position_embeddings", None)
    if longest is None or loaded.tokenizer is None:
        return None
    # RoBERTa and its kind count positions from behind the padding token's id.
    embeddings = getattr(loaded.model.base_model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    offset = getattr(positions, "padding_idx", None)
    longest -= 0 if offset is None else offset + 1
    return min(int(longest), int(loaded.tokenizer.model_max_length))


class GeneratedTask:
    """Summarisation, translation and the like by the engine, in the form of the old pipelines."""

    raises_client_errors = True

    def __init__(self, engine: EngineModel, task: str, prefix: str) -> None:
        self._engine = engine
        self._key = GENERATED[task]
        self._prefix = prefix
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE)

    def __call__(self, inputs: Any, **parameters: Any) -> list[dict[str, str]]:
        """Answer a text or a list of them."""
        texts = inputs if isinstance(inputs, list) else [inputs]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("`inputs` must be a text or a list of texts")
        requests = [(self._prefix + text, parameters) for text in texts]
        generated = self._threads.map(
            lambda request: self._engine.generate(request[0], **request[1]), requests
        )
        return [{self._key: text.strip()} for text in generated]
