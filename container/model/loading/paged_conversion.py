"""Converts a transformers model to paged attention, and checks that its results stay the same.

There is no list of supported models: the model is probed and run. Its layers must call
transformers' attention interface, compute attention in a way that can be traced, or be mixers that
keep their states in transformers' cache; they must cache nothing else (no windows that only its
masks have); and they must return the same logits.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from container.errors import ConfigError
from container.errors import one_line as describe
from container.model.attention import latent, paged
from container.model.attention.positions import follow_positions
from container.model.attention.traced import NotTraceable
from container.model.attention.varlen import AttentionKernels
from container.model.checks.check_times import CheckTimes
from container.model.checks.layer_check import ReferencePass
from container.model.checks.layer_probe import (
    NotPageable,
    check_cached_kinds,
    probe_layers,
    set_attention,
)
from container.model.checks.schedule import CheckPrompt, prompt_len
from container.model.checks.state_probe import probe_mixers
from container.model.fallbacks import TRY_ANOTHER_DTYPE, Fallbacks
from container.model.kernels.cpu import Kernels
from container.model.kv_cache.cache import NO_KEYS, LayerShape
from container.model.layers.cpu_linear import LinearFactory
from container.model.layers.int8_linear import BatchPhase
from container.model.loaded_model import uses_device_map
from container.model.loading.attention_backend import choose_kernels
from container.model.loading.paged_trial import TRIAL_SEGMENT, PagedTrial, own_pass_limit
from container.model.loading.quantization import rounding
from container.model.optimize.compiling import compile_layers
from container.model.optimize.fast_layers import choose_linears, replace_layers
from container.model.optimize.packing import keep_read_weights
from container.model.optimize.stacking import stack_layers
from container.model.parallel.tensor_parallel import is_tensor_parallel
from container.model.reference_check import (
    FOUR_BITS_TOLERANCE,
    REDUCED_TOLERANCE,
    WHOLE_TOLERANCE,
    Mismatch,
)
from container.model.states.mixers import RecurrentMixers
from container.model.vision.language_model import LanguageModel
from container.model.vision.prompt_inputs import UnknownInput

log = logging.getLogger(__name__)

# The accepted distance of a float32 model's logits where only attention is another.
SAME_PASS_TOLERANCE = 0.02


class _OnlyByToken(Exception):
    """A model's mixers may compute a prompt that they continue only one token at a time."""


@dataclass(frozen=True, slots=True)
class PagedModel:
    """The shapes of each layer's cache, the kernels that attend to it, and recurrent mixers.

    `not_proved` are the parts that the checks left out because of their time limit; `times` are
    those of the checks.
    """

    layers: list[LayerShape]
    kernels: AttentionKernels
    mixers: RecurrentMixers | None
    not_proved: tuple[str, ...]
    times: CheckTimes


@torch.inference_mode()
def convert_to_paged(
    module: PreTrainedModel,
    prompt: CheckPrompt,
    device: torch.device,
    fallbacks: Fallbacks,
    phase: BatchPhase | None = None,
    cache_dtype: torch.dtype | None = None,
    *,
    language_model: LanguageModel | None = None,
    int4_weights: bool = False,
    cpu_kernels: Kernels | None = None,
    compiles: bool = False,
) -> PagedModel:
    """Convert a model to paged attention, and check it on a prompt.

    `fallbacks` collects the faster forms that are not used. `language_model` is that of a
    vision-language model, whose check prompt has an image. `phase` quantizes the weights to int8,
    `int4_weights` to int4; `cache_dtype` is the cache's dtype if not the model's; `compiles` runs
    the layers through torch.compile. Raises NotPageable and leaves the model unchanged, or Mismatch
    if the served form is less accurate than the model's own.
    """
    started, times = time.perf_counter(), CheckTimes()
    trial = convert(module, prompt, device, fallbacks, times, language_model)
    if compiles and trial.mixers is not None:
        raise ConfigError(["COMPILE=1 cannot work here: the model is recurrent; leave it out"])
    dtype, ideal = trial.dtype, None
    is_reduced = phase is not None or int4_weights or cache_dtype is not None
    # A recurrence step by step rounds differently from one over a whole prompt, even if exact.
    if is_reduced or trial.mixers is not None:
        ideal = trial.run_exact(cache_dtype, rounding(phase, int4_weights=int4_weights))
    if compiles:
        compile_layers(module, trial.run_once)
    if trial.mixers is not None:
        keep_read_weights(module, trial.run_once)
    keeps_layers = compiles or uses_device_map(module)
    linears = LinearFactory(cpu_kernels)
    replace_layers(
        module, trial, trial.layer_attn_params, dtype, linears,
        choose_linears(phase, linears, int4_weights=int4_weights), keeps_layers=keeps_layers,
    )  # fmt: skip
    attending = [at for at, shape in enumerate(trial.shapes) if shape != NO_KEYS]
    kernels = choose_kernels(
        [trial.shapes[at] for at in attending], [trial.layer_attn_params[at] for at in attending],
        dtype, cache_dtype or dtype, device, fallbacks,
    )  # fmt: skip
    trial.serve(cache_dtype or dtype, phase, kernels, ideal)
    trial.check_served()
    if not keeps_layers and module.device.type == "cpu":
        stack_layers(module, trial.run_briefly, trial, cpu_kernels)
    # Latents are multiplied in another order than the model's, which rounds differently too, and
    # rounding chooses other experts in near-ties.
    is_reduced = is_reduced or any(shape.is_latent for shape in trial.shapes) or trial.has_experts
    limit = REDUCED_TOLERANCE if is_reduced else WHOLE_TOLERANCE
    trial.check_whole(FOUR_BITS_TOLERANCE if int4_weights else limit)
    times.converting_s = time.perf_counter() - started - times.total_s
    log.info(
        "start: checks took %.1f s (%.1f s of it in passes of the whole model), converting layers "
        "and weights %.1f s", times.total_s, times.whole_s, times.converting_s,
    )  # fmt: skip
    return PagedModel(trial.shapes, kernels, trial.mixers, tuple(trial.not_proved), times)


def convert(
    module: PreTrainedModel,
    prompt: CheckPrompt,
    device: torch.device,
    fallbacks: Fallbacks,
    times: CheckTimes,
    language_model: LanguageModel | None = None,
) -> PagedTrial:
    """Switch a model to paged attention, and compare the results in the exact format.

    A model with latents keeps these, if that is as accurate. Raises NotPageable, and leaves the
    model unchanged then.
    """
    attempt = functools.partial(_convert, module, prompt, device, fallbacks, times, language_model)
    with times.of_whole():
        if any(hasattr(part, "expand_kv") for part in module.modules()):
            try:
                return _by_segments_or_tokens(functools.partial(attempt, caches_latents=True))
            except NotPageable as error:
                fallbacks.add(
                    "KV cache",
                    f"it holds expanded keys and values, with more memory for a token, since "
                    f"latents cannot be kept: {error}",
                    TRY_ANOTHER_DTYPE,
                )
        return _by_segments_or_tokens(attempt)


def _by_segments_or_tokens(attempt: Callable[..., PagedTrial]) -> PagedTrial:
    """Convert a model whose mixers continue a prompt in segments, or else one token at a time."""
    try:
        return attempt()
    except _OnlyByToken:
        return attempt(by_token=True)


def _convert(
    module: PreTrainedModel,
    prompt: CheckPrompt,
    device: torch.device,
    fallbacks: Fallbacks,
    times: CheckTimes,
    language_model: LanguageModel | None,
    *,
    caches_latents: bool = False,
    by_token: bool = False,
) -> PagedTrial:
    """Switch and compare; the cache may store latents. Raises NotPageable or _OnlyByToken.

    `by_token`: a recurrent model's own pass has one short segment at a time, like a served one.
    """
    text = module if language_model is None else language_model.inner
    original, ids = text.config._attn_implementation, prompt.ids
    undo = contextlib.ExitStack()
    undo.callback(set_attention, text, original)
    try:
        if language_model is not None and uses_device_map(module):
            raise NotPageable("it reads images, and its layers are on several devices")
        if caches_latents:
            latent.attach(module, undo)
        probe_ids = torch.tensor([ids[-2:]], device=device)
        mixers = probe_mixers(module, probe_ids)
        if mixers is not None:
            _check_recurrent(module, prompt)
        probed = probe_layers(module, probe_ids, undo, mixers, text)
        if probed.implementation == paged.NAME and mixers is None:
            _check_positions(module, text, ids, list(probed.variants), undo, fallbacks)
        set_attention(text, original)
        recurrent_len = TRIAL_SEGMENT if by_token else prompt_len(ids)
        reference = ReferencePass(
            module, prompt, probed.variants, probed.points,
            num_at_once=None if mixers is None else recurrent_len,
            limit_s=own_pass_limit(module),
        )  # fmt: skip
        check_cached_kinds(reference.cache, mixers)
        probed.check_cache(reference.cache)
        reference.cache = None
        with times.of_layers():
            reference.compute_exact(module)
        set_attention(text, probed.implementation)
        if mixers is not None:
            mixers.continues = not by_token
            mixers.install(module)
            undo.callback(mixers.uninstall, module)
        trial = PagedTrial(
            module, reference, probed, mixers, device, fallbacks, times, language_model
        )
        _check_exact(trial, by_token=by_token)
        if language_model is not None:
            trial.check_whole(WHOLE_TOLERANCE if trial.dtype.itemsize < 4 else SAME_PASS_TOLERANCE)
        if caches_latents or probed.implementation != paged.NAME:  # there is another way
            trial.check_served()
    except _OnlyByToken:
        undo.close()
        raise
    except Exception as error:  # a model that does not suit can fail anywhere
        undo.close()
        is_expected = isinstance(error, NotPageable | NotTraceable | Mismatch | UnknownInput)
        raise NotPageable(str(error) if is_expected else describe(error)) from error
    return trial


def _check_positions(
    module: PreTrainedModel,
    text: PreTrainedModel,
    ids: list[int],
    layers: list[str],
    undo: contextlib.ExitStack,
    fallbacks: Fallbacks,
) -> None:
    obstacle = follow_positions(module, text, ids[-2:], layers, undo)
    if obstacle is not None:
        fallbacks.leave_out(f"queries at the last positions of the context: {obstacle}")


def _check_recurrent(module: PreTrainedModel, prompt: CheckPrompt) -> None:
    """Raise NotPageable for what a recurrent model cannot be combined with."""
    if uses_device_map(module) or is_tensor_parallel(module):
        raise NotPageable("it is recurrent, and its layers are on several devices")
    if prompt.whole_spans:
        raise NotPageable("it is recurrent, and the tokens of an image see each other")


def _check_exact(trial: PagedTrial, *, by_token: bool) -> None:
    """Compare in the exact format. Raises _OnlyByToken if mixers cannot continue a prompt at once.

    In 16 bits such a model rounds otherwise one token at a time, so its own pass must run so too.
    """
    try:
        trial.check_exact()
    except Mismatch:
        if trial.mixers is None or by_token:
            raise
        raise _OnlyByToken from None
    if by_token:
        log.info("recurrent layers continue a prompt one token at a time after its first segment")
