"""The served model's tokenizer and chat template; transformers underneath, never torch."""

import contextlib
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2.meta
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from container.errors import TemplateFailed
from container.text.templates.chat_template import ChatTemplate
from container.text.templates.renderer import RenderError, TemplateRenderer
from container.text.tokenizer_files import load_tokenizer, serialise

MARK = "x1y2z3"  # a text that no template contains
# More characters than a token has on average in ordinary text.
CHARS_A_TOKEN = 6
MOST_CHARS_A_TOKEN = 256  # on average, in any text
# The beginning of a text may have this many tokens more than it has within the whole text, since
# the cut may divide long ones.
CUT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and the text span that it encodes; `start` and `stop` are byte offsets."""

    token_id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """Encodes and decodes text for one model; safe to share between requests."""

    def __init__(
        self, inner: PreTrainedTokenizerBase, renderer: TemplateRenderer | None = None
    ) -> None:
        self._inner = inner
        self._texts: dict[int, str] = {}
        self._template = ChatTemplate(inner, renderer)
        added = getattr(inner, "added_tokens_decoder", {})
        self.special_ids = frozenset(inner.all_special_ids) | {
            token_id for token_id, token in added.items() if token.special
        }
        self.added_tokens: dict[str, int] = {
            token.content: token_id for token_id, token in added.items()
        }

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        trust_remote_code: bool = False,
        template_path: str | None = None,
        renderer: TemplateRenderer | None = None,
    ) -> "Tokenizer":
        """Load the tokenizer files of a model's folder; `template_path` overrides its template.

        `renderer` is a renderer that was started earlier; the tokenizer owns it from now on.
        Raises ModelLoadError.
        """
        return cls(load_tokenizer(Path(folder), trust_remote_code, template_path), renderer)

    @property
    def inner(self) -> PreTrainedTokenizerBase:
        """The transformers tokenizer, for its image processors."""
        return self._inner

    def start_renderer(self) -> None:
        """Start the process that renders the chat template; end it if there is no template."""
        if self.has_chat_template:
            self._template.start()
        else:
            self._template.stop()

    def stop_renderer(self) -> None:
        """End the processes that render the chat template, until the next rendering."""
        self._template.stop()

    @property
    def end_ids(self) -> frozenset[int]:
        """The id of the tokenizer's own end token, if it has one."""
        end = self._inner.eos_token_id
        return frozenset([end]) if isinstance(end, int) else frozenset()

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a template to render messages with."""
        return self._inner.chat_template is not None

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizers library backs it, which grammars require."""
        return isinstance(self._inner, PreTrainedTokenizerFast)

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return max(self._inner.get_vocab().values(), default=-1) + 1

    def serialise(self) -> str:
        """Serialise a fast tokenizer; see container.text.tokenizer_files.serialise."""
        assert isinstance(self._inner, PreTrainedTokenizerFast)
        return serialise(self._inner)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode text as ids."""
        ids: list[int] = self._inner(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def is_longer(self, text: str, limit: int) -> bool:
        """Whether a text certainly has more than `limit` tokens.

        Only as much of the text is encoded as shows it. False for one that may have fewer.
        """
        size = limit * CHARS_A_TOKEN
        while size < len(text):
            if len(self.encode(text[:size], add_special_tokens=False)) > limit + CUT_TOKENS:
                return True
            size *= CHARS_A_TOKEN
        return False

    def encode_end(self, text: str, num_tokens: int, *, add_special_tokens: bool) -> list[int]:
        """Encode a text and return the last ids of it, `num_tokens` at most.

        Only as much of the text is encoded as has them; the tokens of a longer run of one character
        may be divided in other places.
        """
        cut = len(text) - (num_tokens + CUT_TOKENS) * MOST_CHARS_A_TOKEN
        if cut > 0:
            space = text.find(" ", cut, cut + CUT_TOKENS * MOST_CHARS_A_TOKEN)
            ids = self.encode(text[max(cut, space) :], add_special_tokens=add_special_tokens)
            if len(ids) > num_tokens + CUT_TOKENS:
                return ids[-num_tokens:]
        return self.encode(text, add_special_tokens=add_special_tokens)[-num_tokens:]

    def pieces(self, text: str, *, add_special_tokens: bool) -> list[Piece]:
        """Encode text as ids with the text span of each.

        Added special tokens have an empty span, as has every token of a slow tokenizer.
        """
        if not self._inner.is_fast:
            ids = self.encode(text, add_special_tokens=add_special_tokens)
            return [Piece(token_id, "", 0, 0) for token_id in ids]
        encoded = self._inner(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True
        )
        offsets = encoded["offset_mapping"]
        sizes = (len(character.encode()) for character in text)
        at_byte = list(itertools.accumulate(sizes, initial=0))
        return [
            Piece(token_id, text[start:stop], at_byte[start], at_byte[stop])
            for token_id, (start, stop) in zip(encoded["input_ids"], offsets, strict=True)
        ]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Decode ids to text; incomplete UTF-8 becomes U+FFFD."""
        text = self._inner.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def text_of(self, token_id: int) -> str:
        """Return the text of a token alone, special tokens included; caches it."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.decode([token_id], skip_special_tokens=False)
        return text

    @property
    def chat_template(self) -> str:
        """The template's text; all templates joined if a model has several; "" without one."""
        template = self._inner.chat_template
        if isinstance(template, dict):
            return "\n".join(map(str, template.values()))
        return str(template or "")

    @functools.cached_property
    def takes_parts(self) -> bool:
        """Whether the template renders message contents that are lists of parts."""
        return self._writes([{"type": "text", "text": MARK}])

    @functools.cached_property
    def takes_strings(self) -> bool:
        """Whether the template renders contents that are strings.

        Some templates iterate over the string's characters instead.
        """
        return self._writes(MARK)

    def _writes(self, content: object) -> bool:
        try:
            text = self.render_chat([{"role": "user", "content": content}])
        except TemplateFailed:
            return False
        return MARK in text and f"'{MARK}'" not in text  # the list itself, as Python prints it

    def image_placeholder(self, image_token: str) -> str:
        """Return the text that the template renders for an image; the token if it is unknown."""
        if not self.has_chat_template or not self.takes_parts:
            return image_token
        parts = [{"type": "text", "text": MARK}, {"type": "image"}, {"type": "text", "text": MARK}]
        text = self.render_chat([{"role": "user", "content": parts}])
        between = text.split(MARK)[1:-1]
        return between[0] if between and image_token in between[0] else image_token

    def render_probe(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        *,
        opens_reply: bool = False,
    ) -> str:
        """Render whole messages, to learn how the template writes. Raises TemplateFailed."""
        return self.render_chat(messages, tools=tools, continues=False, opens_reply=opens_reply)

    @functools.cached_property
    def added_names(self) -> frozenset[str]:
        """The texts of the tokens that were added to the vocabulary."""
        return frozenset(self.added_tokens)

    def special_tokens_in(self, text: str) -> dict[int, str]:
        """Return the special tokens whose names occur in a text, by id."""
        return {
            token_id: name
            for name, token_id in self.added_tokens.items()
            if token_id in self.special_ids and name in text
        }

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: dict[str, Any] | None = None,
        continues: bool | None = None,
        opens_reply: bool = True,
    ) -> str:
        """Render messages with the model's template. Raises TemplateFailed.

        The last message is left open if it `continues`; None means: if it is an assistant message.
        Otherwise `opens_reply` adds the generation prompt. `options` are extra template variables.
        """
        if not self.has_chat_template:
            raise TemplateFailed(
                "the model has no chat template, so it takes prompts, not messages",
                field="messages",
            )
        if continues is None:
            continues = messages[-1]["role"] == "assistant"
        arguments: dict[str, Any] = self._variables(tools) | (options or {})
        arguments |= {
            "add_generation_prompt": opens_reply and not continues,
            "continue_final_message": continues,
        }
        try:
            return self._template.render(messages, arguments)
        except RenderError as error:
            raise TemplateFailed(
                f"the chat template refused the messages: {error}", field="messages"
            ) from error

    def _variables(self, tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the template's variables for tools, those of Firefunction and Granite included."""
        names = self._template_variables
        variables: dict[str, Any] = {"tools": list(tools) or self._no_tools}
        if "functions" in names:
            now = datetime.now().strftime("%b %d %Y %H:%M:%S")
            text = json.dumps(list(tools), indent=4, ensure_ascii=False)
            variables |= {"functions": text, "datetime": now}
        return variables | ({"available_tools": list(tools)} if "available_tools" in names else {})

    @functools.cached_property
    def _no_tools(self) -> list[Any] | None:
        """The template's value for "no tools": None, or an empty list where None fails."""
        messages = [{"role": "user", "content": MARK}]
        options: tuple[list[Any] | None, ...] = (None, [])
        for no_tools in options:
            with contextlib.suppress(RenderError):
                self._template.render(messages, {"tools": no_tools})
                return no_tools
        return None

    @functools.cached_property
    def _template_variables(self) -> set[str]:
        """The variables that the template reads and does not set."""
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        try:
            return jinja2.meta.find_undeclared_variables(environment.parse(self.chat_template))
        except (jinja2.TemplateError, RecursionError):  # another environment's tag, deep nesting
            return set()
