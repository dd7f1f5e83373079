"""The service: what a frontend can do with a prompt. No HTTP, no dialect.

Limits are checked here, so that whatever is wrong with a request is raised before its first byte
of answer is sent.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from container.errors import InvalidParameter, ModelLoadError, PromptTooLong, Unavailable
from container.frontend.clients.admission import Admission
from container.frontend.clients.engine_client import EngineConnection, NoEngine, TokenStream
from container.frontend.generation.completion import Completion
from container.frontend.generation.images import Images, fetch_nothing
from container.frontend.generation.offloading import Offloads, call
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import RunningGroup, RunningRequest
from container.images.decoding import ImageLimits
from container.images.sources import ImageSource
from container.messages.engine import EngineInfo, ImageTensors, SamplingParams, Status, Submit
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Piece, Tokenizer

log = logging.getLogger(__name__)

LoadTokenizer = Callable[[EngineInfo], Tokenizer]
# Shorter texts are tokenized in about a millisecond, less than handing them over is worth.
LONG_TEXT = 4000
# Tokens that one answer may describe.
MAX_PIECES = 32_768


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a dialect calls the prompt and the number of new tokens, for its messages."""

    prompt: str
    max_new_tokens: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine takes it, how long its text was, and its images."""

    ids: list[int]
    num_chars: int
    images: ImageTensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextRules:
    """How the completions of a request become text, and when it came (monotonic seconds).

    Special tokens in the text `shown` are not left out.
    """

    received_at: float
    stops: list[str]
    keep_stop: bool = False
    num_sequences: int = 1
    shown: str = ""


class Service:
    """Owns the tokenizer of this process and talks to the engine.

    `offloads` run slow work where it does not hold up the other requests of this process.
    """

    def __init__(
        self,
        engine: EngineConnection,
        load_tokenizer: LoadTokenizer,
        offloads: Offloads | None = None,
        images: Images | None = None,
        *,
        strict_model_names: bool = False,
    ) -> None:
        self._engine = engine
        self.strict_model_names = strict_model_names
        self._admission = Admission(engine)
        self._load_tokenizer = load_tokenizer
        self.offloads = offloads or Offloads()
        self._images = images or Images(ImageLimits(), fetch_nothing, self.offloads.images)
        self._tokenizer: Tokenizer | None = None
        self._loading = threading.Lock()
        self.started_at = time.time()

    @property
    def has_engine(self) -> bool:
        """Whether there is a language model here at all."""
        return not isinstance(self._engine, NoEngine)

    @property
    def status(self) -> Status:
        """The engine's state. Raises Unavailable when it is gone."""
        return self._engine.status

    @property
    def info(self) -> EngineInfo:
        """The loaded model. Raises Unavailable before it is loaded."""
        return self._ready()[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer. Raises Unavailable before it is loaded."""
        return self._ready()[1]

    def check_ready(self) -> None:
        """Raise Unavailable unless a request could be served now."""
        self._ready()

    @contextmanager
    def preparing(self, context: RequestContext) -> Iterator[RequestContext]:
        """Admit a request that is prepared and started in this block, with the context yielded.

        Raises Unavailable or Overloaded before any work is done, and DeadlineExceeded in the
        middle of it.
        """
        self.check_ready()
        admitted = self._admission.prepare(context.deadline_at, is_batch=context.is_batch)
        with admitted as preparation:
            yield replace(context, preparation=preparation)

    @property
    def is_multimodal(self) -> bool:
        """Whether prompts may have images."""
        return self.info.is_multimodal

    def check_images(self, images: Sequence[ImageSource]) -> None:
        """Check their number. Raises UnsupportedParameter for a model without images."""
        self._images.check(self.info, images)

    @property
    def image_token(self) -> str:
        """What stands for an image in a prompt of a vision-language model."""
        return self._images.token(*self._ready())

    def take_markdown(self, text: str, names: FieldNames) -> tuple[str, list[ImageSource]]:
        """Take TGI's Markdown images out of a prompt, if the model reads images."""
        info, tokenizer = self._ready()
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
        """Make a prompt of a text with image tokens and the images, in their order.

        `truncate` keeps the last ids, where there are no images.
        Raises InvalidParameter, PromptTooLong, or what is wrong with an image.
        """
        if not images:
            ids = self.encode(text, names, add_special_tokens=add_special_tokens, truncate=truncate)
            return Prompt(ids, len(text))
        if truncate is not None:
            raise InvalidParameter("`truncate` cannot cut a prompt with images", field="truncate")
        info, tokenizer = self._ready()
        read = self._images.read(
            info, tokenizer, text, images, names.prompt, add_special_tokens=add_special_tokens
        )
        return Prompt(self.check_prompt(read.ids, names), len(text), read.images)

    def check_num_messages(self, count: int, names: FieldNames) -> None:
        """Refuse more messages than a prompt has tokens, before they are fitted to the template.

        Raises PromptTooLong.
        """
        longest = self.info.max_input_tokens
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
        """Turn a prompt into ids and check its length.

        `truncate` keeps the last ids; -1 keeps as many as fit.
        Raises InvalidParameter or PromptTooLong.
        """
        tokenizer = self.tokenizer
        run = self.offloads.texts if len(text) > LONG_TEXT else call
        if truncate is None:
            longest = self.info.max_input_tokens
            if run(tokenizer.is_longer, text, longest):
                raise _too_long(names.prompt, longest, f"more than {longest}")
        ids = run(tokenizer.encode, text, add_special_tokens=add_special_tokens)
        if truncate is not None:
            ids = ids[-(truncate if truncate > 0 else self.info.max_input_tokens) :]
        return self.check_prompt(ids, names)

    def check_prompt(self, ids: list[int], names: FieldNames) -> list[int]:
        """Check the ids of a prompt. Raises InvalidParameter or PromptTooLong."""
        info = self.info
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
        """Return the ids of words as they begin a text and as they follow a space."""
        encode = self.tokenizer.encode
        forms = [form for word in words for form in (word, f" {word.lstrip()}")]
        ids = [tuple(encode(form, add_special_tokens=False)) for form in forms]
        return [list(form) for form in dict.fromkeys(ids) if form]

    def pieces(self, text: str, field: str, *, add_special_tokens: bool = True) -> list[Piece]:
        """Turn a text into tokens and say where each comes from.

        Raises PromptTooLong for more tokens than MAX_PIECES, or than the model takes, if that is
        more: the answer is many times as large as the text.
        """
        tokenizer = self.tokenizer
        run = self.offloads.texts if len(text) > LONG_TEXT else call
        longest = max(MAX_PIECES, self.info.max_input_tokens)
        if run(tokenizer.is_longer, text, longest):
            raise _too_long(field, longest, f"more than {longest}")
        return run(tokenizer.pieces, text, add_special_tokens=add_special_tokens)

    def count(self, text: str) -> int:
        """Count the tokens of a text of any length, without special tokens."""
        run = self.offloads.texts if len(text) > LONG_TEXT else call
        return len(run(self.tokenizer.encode, text, add_special_tokens=False))

    def room_for(
        self, num_prompt_tokens: int, max_new_tokens: int | None, names: FieldNames
    ) -> int:
        """How many new tokens a request may have; all that fit when it does not say.

        Raises PromptTooLong when it wants more than fit.
        """
        longest = self.info.max_total_tokens
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

    def start(
        self, prompt: Prompt, params: SamplingParams, text: TextRules, context: RequestContext
    ) -> RunningRequest:
        """Submit a prompt and wait for its first token. Raises the engine's refusal."""
        running = self._submit(prompt, params, text, context)
        _wait_first_event(running)
        context.trace.running.append(running)
        return running

    def start_group(
        self,
        prompts: list[Prompt],
        params: list[SamplingParams],
        text: TextRules,
        context: RequestContext,
    ) -> RunningGroup:
        """Submit several prompts at once and wait for the first token of each."""
        group = RunningGroup([])
        try:
            for prompt, prompt_params in zip(prompts, params, strict=True):
                first_stream = group.requests[0].stream if group.requests else None
                group.requests.append(
                    self._submit(prompt, prompt_params, text, context, first_stream)
                )
        except BaseException:
            group.close()
            raise
        _wait_first_event(group)
        context.trace.running.extend(group.requests)
        return group

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        text: TextRules,
        context: RequestContext,
        same_engine_as: TokenStream | None = None,
    ) -> RunningRequest:
        info, tokenizer = self._ready()
        visible = tokenizer.special_tokens_in(text.shown)
        completions = [
            Completion(
                seq_index,
                tokenizer,
                Detokenizer(tokenizer, prompt.ids, visible),
                StopStrings(text.stops, keep_match=text.keep_stop),
            )
            for seq_index in range(text.num_sequences)
        ]
        submitted_at = time.monotonic()
        request = _make_request(prompt, params, text.num_sequences, context)
        stream = self._engine.submit(request, same_engine_as)
        context.end_preparation()
        return RunningRequest(
            prompt.ids,
            params,
            stream,
            info,
            completions,
            text.received_at,
            submitted_at,
            prompt.num_chars,
            deadline_at=context.deadline_at,
            adapter=context.adapter,
        )

    def _ready(self) -> tuple[EngineInfo, Tokenizer]:
        status = self._engine.status
        if status.state == "draining":
            raise Unavailable(status.detail, retry_after_s=30)
        if status.state == "recovering":
            raise Unavailable(status.detail, retry_after_s=1)
        if status.info is None or status.state == "loading":
            raise Unavailable(f"the model is loading: {status.detail}", retry_after_s=5)
        if self._tokenizer is None:
            with self._loading:  # the first request loads, those beside it wait
                if self._tokenizer is None:
                    self._tokenizer = self._load(status.info)
        return status.info, self._tokenizer

    def _load(self, info: EngineInfo) -> Tokenizer:
        try:
            tokenizer = self.offloads.texts(self._load_tokenizer, info)
        except ModelLoadError as error:  # the engine could load it; the files have changed since
            log.error("frontend: the tokenizer cannot be loaded: %s", error.message)
            raise Unavailable("the tokenizer cannot be loaded", retry_after_s=30) from error
        tokenizer.start_renderer()
        return tokenizer


def _wait_first_event(running: RunningRequest | RunningGroup) -> None:
    try:
        running.wait_first_event()
    except BaseException:
        running.close()
        raise


def _make_request(
    prompt: Prompt, params: SamplingParams, num_sequences: int, context: RequestContext
) -> Submit:
    """Create the engine's request. Raises MalformedRequest if the session has ended."""
    session = context.session
    return Submit(
        0,  # the client assigns it
        prompt.ids,
        params,
        num_sequences,
        prompt.images or {},
        adapter=context.adapter,
        session="" if session is None else session.id,
        session_s=0.0 if session is None else session.remaining_s(),
        is_batch=context.is_batch,
    )


def _too_long(field: str, longest: int, length: str) -> PromptTooLong:
    return PromptTooLong(
        f"`{field}` must have less than {longest} tokens. Given: {length}", field=field
    )


def random_seed() -> int:
    """A seed for a request that samples and names none."""
    return secrets.randbits(63)


def tokenizer_loader(*, trust_remote_code: bool, template_path: str | None) -> LoadTokenizer:
    """Make the function that loads a tokenizer from the folder that the engine names."""

    def load(info: EngineInfo) -> Tokenizer:
        return Tokenizer.from_folder(
            os.fspath(info.model_path),
            trust_remote_code=trust_remote_code,
            template_path=template_path,
        )

    return load
