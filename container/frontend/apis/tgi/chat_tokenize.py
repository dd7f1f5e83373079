"""TGI's `/tokenize` and `/chat_tokenize`: the tokens of a prompt, without generating anything.

They take the bodies of `/generate` and of chat completions and answer errors in TGI's form;
sampling parameters are read but have no meaning here. Shapes: router/src/server.rs at v3.3.7.
"""

from typing import Any

import msgspec
from flask import Blueprint, Response, request

from container.errors import InvalidParameter
from container.frontend.apis.openai.chat import OpenAIDialect
from container.frontend.apis.openai.chat_schema import ChatRequest
from container.frontend.apis.tgi.schemas import GenerateRequest
from container.frontend.generation import adapter_selection
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.service import Service
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import parse, read_object
from container.frontend.web.responses import json_response, written
from container.text.tokenizer import Piece


def blueprint(service: Service, openai: OpenAIDialect) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("tokens", __name__)

    @routes.post("/tokenize")
    def tokenize() -> Response:
        tokenize_request = parse(GenerateRequest, read_object(request))
        adapter_id = tokenize_request.resolved.adapter_id
        context = adapter_selection.select_by_id(request_context(), adapter_id, "adapter_id")
        adapter_selection.check_known(context, service)
        return json_response(
            _written_tokens(service.prompts.pieces(tokenize_request.inputs, "inputs"))
        )

    @routes.post("/chat_tokenize")
    def chat_tokenize() -> Response:
        tokenize_request = parse(ChatRequest, read_object(request))
        if not tokenize_request.messages:
            raise InvalidParameter("`messages` must not be empty", field="messages")
        context = request_context()
        context = adapter_selection.select_by_model(context, tokenize_request.model, service)
        adapter_selection.check_known(context, service)
        prompt = openai.render(tokenize_request)
        # The template writes the special tokens itself.
        pieces = service.prompts.pieces(prompt, "messages", add_special_tokens=False)
        return json_response(
            {"tokenize_response": _written_tokens(pieces), "templated_text": prompt}
        )

    return routes


def _written_tokens(pieces: list[Piece]) -> list[msgspec.Raw]:
    return [written(_token(piece)) for piece in in_pieces(pieces)]


def _token(piece: Piece) -> dict[str, Any]:
    return {"id": piece.token_id, "text": piece.text, "start": piece.start, "stop": piece.stop}
