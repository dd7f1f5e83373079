"""The reference's process: transformers' generate, one question at a time, greedily.

answer_reference.py MODEL DTYPE reads a JSON array of {"prompt", "max_tokens"} from stdin and writes
the array of answers to stdout. Weights and cache are always in DTYPE, never quantised.
"""

import json
import os
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PROGRESS_EVERY = 25


class Reference:
    """A model with its tokenizer and chat template."""

    def __init__(self, folder: str, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        # The checkpoint's own penalties and temperatures are left out, as the server leaves them.
        self._end = model.generation_config.eos_token_id
        self._model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def answer(self, prompt: str, max_tokens: int) -> str:
        """Answer one chat message."""
        inputs = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self._model.device)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max_tokens, eos_token_id=self._end, pad_token_id=0
        )
        ids = self._model.generate(**inputs, generation_config=config)
        new = ids[0, inputs["input_ids"].shape[1] :]
        text: str = self._tokenizer.decode(new, skip_special_tokens=True)
        return text


def main() -> None:
    """Answer all questions of stdin. Whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    transformers.utils.logging.disable_progress_bar()
    questions: list[dict[str, Any]] = json.load(sys.stdin)
    reference = Reference(sys.argv[1], sys.argv[2])
    texts = []
    for count, question in enumerate(questions, 1):
        texts.append(reference.answer(question["prompt"], question["max_tokens"]))
        if count % PROGRESS_EVERY == 0:
            print(f"transformers: {count} of {len(questions)}", file=sys.stderr)
    json.dump(texts, answers)
    answers.close()


if __name__ == "__main__":
    main()
