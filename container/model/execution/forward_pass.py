"""The forward pass: creates the tensors of a step's plan and runs the model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from container.errors import one_line
from container.model.async_copy import to_device
from container.model.attention.metadata import AttentionMetadata
from container.model.attention.varlen import (
    REFERENCE_ONLY,
    AttentionKernels,
    DecodeMetadata,
    Kernel,
    VarlenMetadata,
)
from container.model.encoder_decoder.decoder import PagedDecoder
from container.model.execution.cuda_graphs import Capture, DecodeGraphs, fill_placeholders
from container.model.forward_batch import MIN_ROWS, ForwardPlan
from container.model.hf_config import text_config
from container.model.kv_cache.cache import KVCache
from container.model.kv_cache.offload import HostCache
from container.model.layers.int8_linear import BatchPhase
from container.model.lora.layers import LoraLayers
from container.model.parallel.tensor_parallel import broadcast_first, least_over_ranks
from container.model.states.cache import StateCache
from container.model.states.mixers import RecurrentMixers
from container.model.states.pieces import SEGMENT
from container.model.vision.language_model import LanguageModel
from container.model.vision.prompt_inputs import StepInputs


class ForwardPass:
    """Creates tensors from a plan and runs the model; one per rank."""

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        device: torch.device,
        *,
        lora_layers: LoraLayers | None = None,
        phase: BatchPhase | None = None,
        kernels: AttentionKernels = REFERENCE_ONLY,
        is_tensor_parallel: bool = False,
        host: HostCache | None = None,
        states: StateCache | None = None,
        mixers: RecurrentMixers | None = None,
        segment: int = SEGMENT,
        language_model: LanguageModel | None = None,
        decoder: PagedDecoder | None = None,
    ) -> None:
        """`mixers` read and update `states`, prompts in segments of at most `segment` tokens.

        `language_model` is that of a vision-language model, `decoder` that of an encoder-decoder.
        """
        self._decoder = decoder
        self._language_model = language_model
        self.cache = cache
        self.states = states
        self._mixers = mixers
        self._segment = segment
        if mixers is not None:
            mixers.scopes = [scope for scope in (lora_layers, phase) if scope is not None]
        self.host = host
        self._is_tensor_parallel = is_tensor_parallel
        self.kernels = kernels
        self._model = model
        self._device = device
        self._lora_layers = lora_layers
        self._phase = phase
        self._graphs: DecodeGraphs | None = None

    @property
    def has_graphs(self) -> bool:
        """Whether decodes run as CUDA graphs."""
        return self._graphs is not None

    @torch.inference_mode()
    def capture(
        self, sizes: list[int], max_blocks: int, capture: Capture, progress: Callable[[str], None]
    ) -> str | None:
        """Capture decodes of these numbers of rows; return why they run eagerly, if they do."""
        decode_graphs = DecodeGraphs(
            self._call,
            self.cache,
            sizes=sizes,
            max_blocks=max_blocks,
            vocabulary=text_config(self._model.config).vocab_size,
            device=self._device,
            kernels=self.kernels,
        )
        if self._phase is not None:
            self._phase.num_decodes = max(sizes)
        obstacle = None
        try:
            decode_graphs.capture(capture, progress)
            decode_graphs.check(self.run)
        except Exception as error:  # a model's code can fail to capture in many ways
            obstacle = one_line(error)
        if self._is_tensor_parallel and not least_over_ranks(int(obstacle is None)):
            obstacle = obstacle or "the capture failed in another rank"
        if obstacle is None:
            self._graphs = decode_graphs
        return obstacle

    @torch.inference_mode()
    def run(
        self,
        plan: ForwardPlan,
        sampled: torch.Tensor | None = None,
        inputs: StepInputs | None = None,
        encoded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the plan's logit rows, float32 [rows, vocabulary], valid until the next pass.

        `sampled` has the tokens for the plan's placeholders; only rank 0 has it. `inputs` are those
        of rows with images; `encoded` what the encoder made of prompts that begin, [tokens, width].
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # the engine's thread is not the loading thread
        if plan.copies:
            assert self.host is not None, "block copies without host memory slots"
            self.host.copy_blocks(plan.copies)
        if self._lora_layers is not None:
            self._lora_layers.begin(plan.adapters)
        if self._phase is not None:
            self._phase.num_decodes = plan.num_decodes
        if plan.num_placeholders and self._is_tensor_parallel:
            if sampled is None:
                sampled = torch.empty(plan.num_placeholders, dtype=torch.int64, device=self._device)
            broadcast_first(sampled)
        if self._graphs is not None and self._graphs.fits(plan):
            return self._graphs.replay(plan, sampled).index_select(0, self._tensor(plan.logit_rows))
        ids = self._tensor(plan.token_ids)
        if sampled is not None:
            ids = fill_placeholders(ids, sampled)
        num_rows = len(plan.logit_rows)
        rows = self._tensor(plan.logit_rows + [0] * max(0, MIN_ROWS - num_rows))
        with self._over_states(plan), self._with_images(inputs):
            logits = self._call(ids, self._tensor(plan.positions), self._step(plan), rows, encoded)
        return logits[:num_rows].contiguous()

    def _with_images(self, inputs: StepInputs | None) -> AbstractContextManager[None]:
        if self._language_model is None:
            return nullcontext()
        return self._language_model.with_inputs(inputs)

    @contextmanager
    def _over_states(self, plan: ForwardPlan) -> Iterator[None]:
        """Let the mixers compute the plan's pieces in this context."""
        if self._mixers is None or self.states is None:
            yield
            return
        self.states.copy_slots(plan.state_copies)
        self._mixers.begin(plan, self.states, self._device, self._segment)
        try:
            yield
        finally:
            self._mixers.end()

    def _call(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: AttentionMetadata,
        rows: torch.Tensor | int = 0,
        encoded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the model; return logits [rows, vocabulary] in float32. `rows` 0: all of them."""
        if self._decoder is not None:
            all_rows = self._decoder.run(ids, positions, step, encoded)
            return (all_rows if isinstance(rows, int) else all_rows.index_select(0, rows)).float()
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            step=step,
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _step(self, plan: ForwardPlan) -> AttentionMetadata:
        tables, decodes = None, None
        kernel = self.kernels.chunks
        if any(chunk.whole_spans for chunk in plan.chunks):  # fused kernels have no such masks
            return AttentionMetadata.of(plan, self.cache, self._device)
        if self.kernels.decodes is Kernel.TRITON and plan.num_decodes:
            decodes = DecodeMetadata.of(plan, self.cache, self._device)
        if kernel is not Kernel.REFERENCE and (decodes is None or plan.chunks):
            with_decodes = decodes is None
            tables = VarlenMetadata.of(plan, self.cache, kernel, with_decodes=with_decodes)
        return AttentionMetadata.of(plan, self.cache, self._device, tables, decodes)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return to_device(values, self._device, torch.int64)
