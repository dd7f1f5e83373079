"""The service: admits, submits and starts requests of the served model. No HTTP, no API.

Every error of a request is raised before the first byte of its answer is sent.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from container.errors import ServingError
from container.frontend.clients.admission import Admission
from container.frontend.clients.engine_client import EngineConnection, TokenStream
from container.frontend.generation.completion import Completion
from container.frontend.generation.images import Images, fetch_nothing
from container.frontend.generation.offloading import Offloads
from container.frontend.generation.prompts import Prompt, Prompts
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_group import RunningGroup
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.served_model import LoadTokenizer, ServedModel
from container.images.decoding import ImageLimits
from container.messages.engine import EngineInfo, SamplingParams, Status, Submit
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextRules:
    """How the completions of a request become text, and its arrival time (monotonic seconds).

    Special tokens that occur in the text `shown` stay in the completions.
    """

    received_at: float
    stops: list[str]
    keep_stop: bool = False
    num_sequences: int = 1
    shown: str = ""


class Service:
    """Owns the served model and its prompts, and submits requests to the engine.

    `offloads` keep slow work from blocking the other requests of this process.
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
        self.offloads = offloads or Offloads()
        self.model = ServedModel(engine, load_tokenizer, self.offloads.texts)
        images = images or Images(ImageLimits(), fetch_nothing, self.offloads.images)
        self.prompts = Prompts(self.model, images, self.offloads.texts)
        self.started_at = time.time()

    @property
    def has_engine(self) -> bool:
        """Whether this server has a language model at all."""
        return self.model.has_engine

    @property
    def status(self) -> Status:
        """The engine's status. Raises Unavailable when it has exited, NotFound if there is none."""
        return self.model.status

    @property
    def info(self) -> EngineInfo:
        """The loaded model. Raises Unavailable before it is loaded."""
        return self.model.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer. Raises Unavailable before it is loaded."""
        return self.model.tokenizer

    def check_ready(self) -> None:
        """Raise Unavailable unless a request could be served now."""
        self.model.check_ready()

    @property
    def is_full(self) -> bool:
        """Whether a request would be refused now because the engine has as many as it takes."""
        try:
            return self.status.state == "ready" and self._admission.is_full
        except ServingError:  # the application says why
            return False

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
        info, tokenizer = self.model.ready()
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
        prompt.images,
        adapter=context.adapter,
        session="" if session is None else session.id,
        session_s=0.0 if session is None else session.remaining_s(),
        is_batch=context.is_batch,
        image_spans=prompt.image_spans,
    )
