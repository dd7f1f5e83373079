"""The reference's process: transformers' generate, greedily, some questions at a time.

answer_reference.py MODEL DTYPE BATCH reads a JSON array of {"prompt", "max_tokens"} from stdin and
writes the array of answers to stdout. Weights and cache are always in DTYPE, never quantised.
"""

import json
import os
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

Question = dict[str, Any]


class Reference:
    """A model with its tokenizer and chat template."""

    def __init__(self, folder: str, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        # The checkpoint's own penalties and temperatures are left out, as the server leaves them.
        ends = model.generation_config.eos_token_id
        self._ends: list[int] = ends if isinstance(ends, list) else [ends]
        self._model.generation_config = GenerationConfig()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token_id = self._ends[0]

    @torch.inference_mode()
    def answer(self, questions: list[Question]) -> list[str]:
        """Answer chat messages in one batch, each up to its own length."""
        chats = [[{"role": "user", "content": question["prompt"]}] for question in questions]
        inputs = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(question["max_tokens"] for question in questions),
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
        )
        rows = self._model.generate(**inputs, generation_config=config)
        new = rows[:, inputs["input_ids"].shape[1] :].tolist()
        pairs = zip(new, questions, strict=True)
        return [self._text(ids[: question["max_tokens"]]) for ids, question in pairs]

    def _text(self, ids: list[int]) -> str:
        end = next((at for at, token_id in enumerate(ids) if token_id in self._ends), len(ids))
        text: str = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text


def answer_all(reference: Reference, questions: list[Question], batch: int) -> list[str]:
    """Answer all questions, those of like length together; return the answers in their order."""
    lengths = [(q["max_tokens"], len(q["prompt"])) for q in questions]
    order = sorted(range(len(questions)), key=lengths.__getitem__)
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        texts = reference.answer([questions[row] for row in rows])
        answers.update(zip(rows, texts, strict=True))
        print(f"transformers: {len(answers)} of {len(questions)}", file=sys.stderr, flush=True)
    return [answers[row] for row in range(len(questions))]


def main() -> None:
    """Answer all questions of stdin. Whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    transformers.utils.logging.disable_progress_bar()
    questions: list[Question] = json.load(sys.stdin)
    reference = Reference(sys.argv[1], sys.argv[2])
    json.dump(answer_all(reference, questions, int(sys.argv[3])), answers)
    answers.close()


if __name__ == "__main__":
    main()
