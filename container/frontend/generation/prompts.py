"""Prompts: text and images as the ids and tensors that the engine takes, within its limits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from container.errors import InvalidParameter, PromptTooLong
from container.frontend.generation.images import Images
from container.frontend.generation.offloading import Offload, call
from container.frontend.generation.served_model import ServedModel
from container.images.sources import ImageSource
from container.messages.images import ImageSpan, ImageTensors
from container.text.tokenizer import Piece, Tokenizer

# Shorter texts are tokenized in about a millisecond, less than handing them to a thread is worth.
LONG_TEXT = 4000
# Tokens that one answer may describe.
MAX_PIECES = 32_768


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The names that an API has for the prompt and the number of new tokens, for errors."""

    prompt: str
    max_new_tokens: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine takes it: its ids, the length of its text, and its images."""

    ids: list[int]
    num_chars: int
    images: ImageTensors = field(default_factory=dict)
    image_spans: list[ImageSpan] = field(default_factory=list)


class Prompts:
    """Makes prompts for the served model. `offload` runs slow work on texts."""

    def __init__(self, model: ServedModel, images: Images, offload: Offload) -> None:
        self._model = model
        self._images = images
        self._offload = offload

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer. Raises Unavailable before it is loaded."""
        return self._model.tokenizer

    @property
    def is_multimodal(self) -> bool:
        """Whether prompts may have images."""
        return self._model.info.is_multimodal

    def check_images(self, images: Sequence[ImageSource]) -> None:
        """Check the number of images; see Images.check."""
        self._images.check(self._model.info, images)

    @property
    def image_token(self) -> str:
        """The placeholder of an image in a prompt of a vision-language model."""
        return self._images.token(*self._model.ready())

    def take_markdown(self, text: str, names: FieldNames) -> tuple[str, list[ImageSource]]:
        """Take TGI's Markdown images out of a prompt, if the model reads images."""
        info, tokenizer = self._model.ready()
        return self._images.take_markdown(info, tokenizer, text, names.prompt)

    def prompt(
        self,
        text: str,
        names: FieldNames,
        images: Sequence[ImageSource] = (),
        *,
        add_special_tokens: bool = True,
        truncate: int | None = None,
    ) -> Prompt:
        """Encode a text with image tokens, and its images in their order.

        `truncate` keeps the last ids of a prompt without images.
        Raises InvalidParameter, PromptTooLong, or the error of an image.
        """
        if not images:
            ids = self.encode(text, names, add_special_tokens=add_special_tokens, truncate=truncate)
            return Prompt(ids, len(text))
        if truncate is not None:
            raise InvalidParameter("`truncate` cannot cut a prompt with images", field="truncate")
        info, tokenizer = self._model.ready()
        read = self._images.read(
            info, tokenizer, text, images, names.prompt, add_special_tokens=add_special_tokens
        )
        ids = self.check_prompt(read.ids, names)
        return Prompt(ids, len(text), read.images, read.image_spans)

    def check_num_messages(self, count: int, names: FieldNames) -> None:
        """Refuse more messages than a prompt has tokens, before they are fitted to the template.

        Raises PromptTooLong.
        """
        longest = self._model.info.max_input_tokens
        if count > longest:
            raise _too_long(names.prompt, longest, f"{count} messages")

    def encode(
        self,
        text: str,
        names: FieldNames,
        *,
        add_special_tokens: bool = True,
        truncate: int | None = None,
    ) -> list[int]:
        """Encode a text and check its length.

        `truncate` keeps the last ids; -1 keeps as many as fit.
        Raises InvalidParameter or PromptTooLong.
        """
        tokenizer = self.tokenizer
        run, longest = self._run_for(text), self._model.info.max_input_tokens
        if truncate is None:
            self._check_length(text, longest, names.prompt)
            ids = run(tokenizer.encode, text, add_special_tokens=add_special_tokens)
        else:
            num_kept = truncate if truncate > 0 else longest
            ids = run(tokenizer.encode_end, text, num_kept, add_special_tokens=add_special_tokens)
        return self.check_prompt(ids, names)

    def check_prompt(self, ids: list[int], names: FieldNames) -> list[int]:
        """Check the ids of a prompt. Raises InvalidParameter or PromptTooLong."""
        info = self._model.info
        if not ids:
            raise InvalidParameter(f"`{names.prompt}` cannot be empty", field=names.prompt)
        if max(ids) >= info.vocabulary:
            raise InvalidParameter(
                f"`{names.prompt}` has a token that the model does not have (id {max(ids)} of "
                f"{info.vocabulary})",
                field=names.prompt,
            )
        if len(ids) > info.max_input_tokens:
            raise _too_long(names.prompt, info.max_input_tokens, str(len(ids)))
        return ids

    def word_ids(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ids of words at the start of a text and after a space."""
        encode = self.tokenizer.encode
        forms = [form for word in words for form in (word, f" {word.lstrip()}")]

        def run() -> list[tuple[int, ...]]:
            return [tuple(encode(form, add_special_tokens=False)) for form in forms]

        ids = self._run_for("".join(words))(run)
        return [list(form) for form in dict.fromkeys(ids) if form]

    def pieces(self, text: str, field: str, *, add_special_tokens: bool = True) -> list[Piece]:
        """Encode a text; return each token with its range of the text.

        Raises PromptTooLong for more tokens than MAX_PIECES, or than the model takes, if that is
        more: the answer is many times as large as the text.
        """
        tokenizer = self.tokenizer
        self._check_length(text, max(MAX_PIECES, self._model.info.max_input_tokens), field)
        return self._run_for(text)(tokenizer.pieces, text, add_special_tokens=add_special_tokens)

    def count(self, text: str) -> int:
        """Count the tokens of a text of any length, without special tokens."""
        return len(self._run_for(text)(self.tokenizer.encode, text, add_special_tokens=False))

    def _run_for(self, text: str) -> Offload:
        """Return how to run work on a text: a long one would hold up others."""
        return self._offload if len(text) > LONG_TEXT else call

    def _check_length(self, text: str, longest: int, field: str) -> None:
        """Raise PromptTooLong for a text that certainly has more tokens."""
        if self._run_for(text)(self.tokenizer.is_longer, text, longest):
            raise _too_long(field, longest, f"more than {longest}")

    def limit_new_tokens(
        self, num_prompt_tokens: int, max_new_tokens: int | None, names: FieldNames
    ) -> int:
        """Return the most new tokens of a request: its own limit, or all that fit without one.

        Raises PromptTooLong if its limit is more than fits.
        """
        longest = self._model.info.max_total_tokens
        if max_new_tokens is None:
            return longest - num_prompt_tokens
        if num_prompt_tokens + max_new_tokens > longest:
            raise PromptTooLong(
                f"`{names.prompt}` tokens + `{names.max_new_tokens}` must be <= {longest}. Given: "
                f"{num_prompt_tokens} `{names.prompt}` tokens and {max_new_tokens} "
                f"`{names.max_new_tokens}`",
                field=names.max_new_tokens,
            )
        return max_new_tokens


def _too_long(field: str, longest: int, length: str) -> PromptTooLong:
    return PromptTooLong(
        f"`{field}` must have less than {longest} tokens. Given: {length}", field=field
    )
