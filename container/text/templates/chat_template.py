"""A tokenizer's chat template, rendered as the tokenizer's own `apply_chat_template` does it."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from container.text.templates.renderer import RenderError, TemplateRenderer

Messages = list[dict[str, Any]]


class ChatTemplate:
    """Renders messages with the template of one tokenizer, in other processes."""

    def __init__(
        self, inner: PreTrainedTokenizerBase, renderer: TemplateRenderer | None = None
    ) -> None:
        self._inner = inner
        self._renderer = renderer or TemplateRenderer()
        own, default = type(inner).apply_chat_template, PreTrainedTokenizerBase.apply_chat_template
        self._has_own_code = own is not default

    def start(self) -> None:
        """Start a process, so that the first rendering does not wait as long for it."""
        if self._has_own_code:
            self._renderer.close()
        else:
            self._renderer.start()

    def stop(self) -> None:
        """End the processes, until the next rendering."""
        self._renderer.close()

    def render(self, messages: Messages, arguments: dict[str, Any]) -> str:
        """Render messages; `arguments` are those of `apply_chat_template`. Raises RenderError."""
        run = self._run_own_code if self._has_own_code else self._run_template
        try:
            return run(messages, arguments)
        except RenderError as error:
            if not error.is_type:
                raise
        # Some templates concatenate arguments as text, others expect an object.
        return run(_with_text_arguments(messages), arguments)

    def _run_template(self, messages: Messages, arguments: dict[str, Any]) -> str:
        try:
            template = self._inner.get_chat_template(None, arguments["tools"])
        except ValueError as error:  # such as none of several templates that is the default
            raise RenderError(str(error)) from error
        special_tokens: dict[str, Any] = self._inner.special_tokens_map
        return self._renderer.render(
            **(special_tokens | arguments),
            chat_template=template,
            messages=[
                {name: value for name, value in message.items() if value is not None}
                for message in messages
            ],
        )

    def _run_own_code(self, messages: Messages, arguments: dict[str, Any]) -> str:
        """Render with code of the model's own, which TRUST_REMOTE_CODE has allowed to run here."""
        try:
            text = self._inner.apply_chat_template(messages, tokenize=False, **arguments)
        except Exception as error:  # it can raise anything
            message = str(error).partition("\n")[0]
            raise RenderError(message, is_type=isinstance(error, TypeError)) from error
        assert isinstance(text, str)
        return text


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with the arguments of their tool calls as JSON text."""
    converted = []
    for message in messages:
        calls = [
            call | {"function": call["function"] | {"arguments": _as_text(call)}}
            for call in message.get("tool_calls") or []
        ]
        converted.append(message | {"tool_calls": calls} if calls else message)
    return converted


def _as_text(call: dict[str, Any]) -> str:
    """Write a call's arguments as JSON; those that were cut are text already."""
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
