"""Extractive question answering, for which transformers 5 has no pipeline.

The answer is the span of the context with the highest product of start and end probabilities, over
overlapping windows of long contexts: `{"answer", "score", "start", "end"}`, as from the pipeline of
transformers 4.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

MAX_WINDOW = 384
STRIDE = 128
MAX_ANSWER_LEN = 15


class QuestionAnswering:
    """Answers `{"question", "context"}` or a list of them; one thread at a time may call it."""

    raises_client_errors = True

    def __init__(self, folder: Path, device: torch.device, *, trust_remote_code: bool) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if not self._tokenizer.is_fast:
            raise ValueError("question answering needs a fast tokenizer (tokenizer.json)")
        self._model = AutoModelForQuestionAnswering.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
        self._model.to(device).eval()
        self._device = device
        longest = getattr(self._model.config, "max_position_embeddings", MAX_WINDOW)
        self._window = min(MAX_WINDOW, longest)

    def __call__(self, inputs: Any, *, top_k: int = 1, max_answer_len: int = MAX_ANSWER_LEN) -> Any:
        """Return the best answer, or a list of answers if `top_k` is above 1."""
        if isinstance(inputs, list):
            return [
                self(question, top_k=top_k, max_answer_len=max_answer_len) for question in inputs
            ]
        if not isinstance(inputs, dict) or not all(
            isinstance(inputs.get(name), str) and inputs[name].strip()
            for name in ("question", "context")
        ):
            raise ValueError('`inputs` must be {"question": "...", "context": "..."}')
        spans = self._spans(inputs["question"], inputs["context"], top_k, max_answer_len)
        return spans[0] if top_k == 1 else spans

    @torch.inference_mode()
    def _spans(
        self, question: str, context: str, top_k: int, max_answer_len: int
    ) -> list[dict[str, Any]]:
        encoded = self._tokenizer(
            question, context, truncation="only_second", max_length=self._window,
            stride=min(STRIDE, self._window // 4), return_overflowing_tokens=True,
            return_offsets_mapping=True, padding=True, return_tensors="pt",
        )  # fmt: skip
        offsets = encoded.pop("offset_mapping")
        encoded.pop("overflow_to_sample_mapping", None)
        output = self._model(**{name: tensor.to(self._device) for name, tensor in encoded.items()})
        scores_by_span: dict[tuple[int, int], float] = {}
        for window in range(len(offsets)):
            is_context = torch.tensor([part == 1 for part in encoded.sequence_ids(window)])
            start = _probabilities(output.start_logits[window].cpu(), is_context)
            end = _probabilities(output.end_logits[window].cpu(), is_context)
            # [start, end], only spans that do not end before they start and are not too long.
            scores = (start[:, None] * end[None]).triu().tril(max_answer_len - 1)
            best = scores.flatten().topk(min(top_k, scores.numel()))
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                first, last = divmod(index, len(start))
                span = (int(offsets[window][first][0]), int(offsets[window][last][1]))
                scores_by_span[span] = max(score, scores_by_span.get(span, 0.0))
        ranked = sorted(scores_by_span.items(), key=lambda item: -item[1])[:top_k]
        return [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in ranked
        ]


def _probabilities(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    return logits.float().masked_fill(~allowed, -torch.inf).softmax(-1)
