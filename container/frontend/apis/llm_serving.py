"""The routes of `llm_serving`, a small service whose users call it without a `/v1` prefix.

Wire format: its README (routes `/chat`, `/chat/completions`, `/embeddings`). A message without a
role is the user's; a model without a chat template gets the last message that is neither the
assistant's nor the system's as its prompt. `/embeddings` is OpenAI's (routes.embeddings).
"""

from typing import Any

from flask import Blueprint, Response, request

from container.errors import ServingError
from container.frontend.apis.openai.chat import OpenAIDialect
from container.frontend.generation.service import Service
from container.frontend.web.error_responses import shorten
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import read_object
from container.frontend.web.responses import json_response


def blueprint(service: Service, openai: OpenAIDialect, *, system_prompt: str | None) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("llm_serving", __name__)

    @routes.get("/chat")
    def status() -> Response:
        try:
            info = service.info
        except ServingError as error:
            return json_response({"status": "not started", "message": shorten(error.message)})
        return json_response(
            {
                "status": "running",
                "llm_serving_url": request.host_url.rstrip("/"),
                "model_name": info.model_id,
                "max_new_tokens": info.max_total_tokens - 1,
                "device": info.device,
                "do_sample": True,  # unless a request has the temperature 0
                "system_prompt": system_prompt or "",
            }
        )

    @routes.post("/chat/completions")
    def chat_completions() -> Response:
        return openai.chat(with_roles(read_object(request)), request_context(), takes_plain=True)

    return routes


def with_roles(body: dict[str, Any]) -> dict[str, Any]:
    """Give messages without a role the user's. Items of another type stay for the checks."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    named = [
        {"role": "user"} | {name: value for name, value in message.items() if value is not None}
        if isinstance(message, dict)
        else message
        for message in messages
    ]
    return body | {"messages": named}
