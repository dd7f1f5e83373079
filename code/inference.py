"""An example of user code: a support desk over the built-in engine.

Put this folder into `model.tar.gz` as `code/`, beside the model's files. There is no `model_fn`, so
`model` is the server's own engine: all requests share its batches. `predict_fn` is a generator, so
the answer streams to the client as it is generated.
"""

import json
from collections.abc import Iterator
from typing import Any

INSTRUCTION = "You answer questions of customers in one or two short sentences."


def input_fn(body: str, content_type: str) -> dict[str, Any]:
    """Take `{"question": "...", "max_tokens": 100}`; a ValueError becomes a 400."""
    if content_type != "application/json":
        raise ValueError(f"send application/json, not {content_type}")
    request = json.loads(body)
    if not isinstance(request, dict) or not isinstance(request.get("question"), str):
        raise ValueError('send {"question": "..."}')
    return request


def predict_fn(request: dict[str, Any], model: Any) -> Iterator[str]:
    """Ask the engine and pass its text on, piece by piece."""
    messages = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": request["question"]},
    ]
    yield from model.stream(messages, max_tokens=request.get("max_tokens", 100), temperature=0)
