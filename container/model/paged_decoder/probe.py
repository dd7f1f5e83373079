"""Probes the decoder of an encoder-decoder for its attention, its biases and its positions."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from container.model.attention import cross
from container.model.attention.latent import blank_output
from container.model.attention.metadata import AttentionParams
from container.model.attention.positions import are_near
from container.model.attention.recorder import registered
from container.model.attention.relative_bias import without_constant_tail
from container.model.checks.layer_probe import NotPageable
from container.model.encoder_decoder.decoder import (
    PagedDecoder,
    call_decoder,
    encode,
    takes_positions,
)
from container.model.encoder_decoder.position_table import PositionTable
from container.model.encoder_decoder.step_cache import StepCache
from container.model.hf_config import text_config
from container.model.kv_cache.cache import LayerShape

PROBE = "paged_decoder_probe"
# Different numbers of tokens, which distinguish the two kinds of attention.
NUM_ENCODED, NUM_DECODED = 5, 3


@dataclass
class _Call:
    """A call of the attention function."""

    module: nn.Module
    reads_encoder: bool
    query: torch.Tensor
    key: torch.Tensor
    shape: LayerShape
    bias: torch.Tensor | None


@dataclass
class _Recorder:
    """Stands in for attention: notes its arguments and returns zeros."""

    calls: list[_Call] = field(default_factory=list)

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: object,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Implement transformers' attention interface."""
        AttentionParams.of(query, **kwargs)
        shape = LayerShape(key.shape[1], key.shape[-1], value.shape[-1])
        reads_encoder = key.shape[2] == NUM_ENCODED
        self.calls.append(
            _Call(module, reads_encoder, query, key, shape, kwargs.get("position_bias"))
        )
        return blank_output(module, query, value), None


class DecoderProbe:
    """Runs a decoder with an attention that only records its arguments."""

    def __init__(self, module: PreTrainedModel, ids: list[int], context: int) -> None:
        """`context` is the number of positions that the decoder will see at most."""
        self._module = module
        self._decoder: PreTrainedModel = module.get_decoder()
        self._context = context
        # Some models give padding no position.
        padding = getattr(module.config, "pad_token_id", None)
        self._ids = NUM_ENCODED * [token_id for token_id in ids if token_id != padding]
        self._encoded = encode(module, self._ids[:NUM_ENCODED])

    def convert(self, undo: contextlib.ExitStack) -> PagedDecoder:
        """Give the decoder paged attention, and return it. Raises NotPageable.

        `undo` gets callbacks that restore the model.
        """
        _separate_config(self._decoder, undo)
        before = self._decoder.config._attn_implementation
        undo.callback(self._set_attention, before)
        calls = self._recorded(NUM_DECODED)
        shapes = _shapes(calls)
        self._mark(calls)
        table = self._position_table()
        if table is not None:
            table.install()
            undo.callback(table.uninstall)
        self._check_positions(table)
        self._set_attention(cross.NAME)
        return PagedDecoder(self._module, shapes, self._encoded.shape[1], table)

    def _mark(self, calls: list[_Call]) -> None:
        """Note what each attention module attends to, and its biases by distance."""
        if any(call.bias is not None for call in calls if not call.reads_encoder):
            last = self._recorded(1, StepCache(count=self._context - 1, num_keys=self._context))
            biases = {id(call.module): call.bias for call in last if not call.reads_encoder}
        else:
            biases = {}
        tables: dict[int, torch.Tensor] = {}
        for call in calls:
            bias = None if call.reads_encoder else biases.get(id(call.module))
            if bias is not None and id(bias) not in tables:
                tables[id(bias)] = without_constant_tail(bias[0, :, -1].flip(-1))
            cross.mark(
                call.module,
                reads_encoder=call.reads_encoder,
                relative_bias=None if bias is None else tables[id(bias)],
            )

    def _position_table(self) -> PositionTable | None:
        """Find the module that embeds positions; None without one."""
        first, late = (self._outputs_outside_layers(count) for count in (0, self._late))
        changed = [name for name, out in first.items() if not _are_equal(out, late.get(name))]
        if not changed or takes_positions(self._module):
            return None
        embedding = self._decoder.get_submodule(changed[0])
        output = self._output_of(embedding)
        if output.dim() not in (2, 3) or output.shape[-2] != self._num_positions:
            raise NotPageable("its decoder embeds positions in its own way")
        rows = output.reshape(-1, output.shape[-1])
        return PositionTable(embedding, rows.clone(), output.dim())

    @property
    def _num_positions(self) -> int:
        positions = getattr(text_config(self._decoder.config), "max_position_embeddings", None)
        return int(positions or self._context)

    @property
    def _late(self) -> int:
        return self._num_positions - 2

    def _check_positions(self, table: PositionTable | None) -> None:
        """Compare queries and keys at a late position. Raises NotPageable."""
        expected = self._recorded(1, StepCache(count=self._late))
        positions = torch.tensor([self._late], device=self._module.device)
        with table.at(positions) if table is not None else contextlib.nullcontext():
            calls = self._recorded(1, StepCache(), positions)
        if not are_near(_states(calls), _states(expected)):
            raise NotPageable("its decoder has positions of its own")

    def _recorded(
        self,
        num_ids: int,
        cache: StepCache | None = None,
        positions: torch.Tensor | None = None,
        ids: list[int] | None = None,
    ) -> list[_Call]:
        """Run the decoder on its first ids, and return the calls of its attention."""
        recorder, device = _Recorder(), self._module.device
        cache = StepCache() if cache is None else cache  # an empty cache is false
        if positions is None:
            positions = torch.arange(num_ids, device=device) + cache.get_seq_length()
        rows = torch.tensor(ids or self._ids[:num_ids], device=device)
        with registered(PROBE, recorder.attend):
            self._set_attention(PROBE)
            call_decoder(self._module, rows, positions, self._encoded, cache)
        return recorder.calls

    def _outputs_outside_layers(self, count: int) -> dict[str, torch.Tensor]:
        """Run the decoder on one id, and return the outputs of modules that are in no list."""
        outputs: dict[str, torch.Tensor] = {}
        with contextlib.ExitStack() as stack:
            for name, part in self._decoder.named_modules():
                if not name or any(piece.isdecimal() for piece in name.split(".")):
                    continue

                def record(_: nn.Module, __: object, out: Any, name: str = name) -> None:
                    if isinstance(out, torch.Tensor):
                        outputs[name] = out.clone()

                stack.enter_context(_hooked(part, record))
            self._recorded(1, StepCache(count=count))
        return outputs

    def _output_of(self, embedding: nn.Module) -> torch.Tensor:
        """Return the output of a position embedding for all positions in order."""
        outputs: list[torch.Tensor] = []

        def stop(_: nn.Module, __: object, out: torch.Tensor) -> None:
            outputs.append(out)
            raise _OutputRead

        with _hooked(embedding, stop), contextlib.suppress(_OutputRead):
            ids = self._ids[:1] * self._num_positions
            self._recorded(len(ids), ids=ids)
        return outputs[0]

    def _set_attention(self, name: str) -> None:
        self._decoder.set_attn_implementation(name)


class _OutputRead(Exception):
    """A module's output has been read."""


@contextlib.contextmanager
def _hooked(part: nn.Module, hook: Any) -> Iterator[None]:
    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _separate_config(decoder: PreTrainedModel, undo: contextlib.ExitStack) -> None:
    """Give a decoder a copy of the configuration, so that the encoder keeps its attention."""
    shared = decoder.config
    own = copy.copy(shared)
    for part in decoder.modules():
        if vars(part).get("config") is shared:
            part.config = own  # type: ignore[assignment]
            undo.callback(setattr, part, "config", shared)


def _shapes(calls: list[_Call]) -> list[LayerShape]:
    """Return the shapes of the layers' keys and values. Raises NotPageable."""
    shapes_by_layer: dict[tuple[int, bool], LayerShape] = {}
    for call in calls:
        shapes_by_layer[getattr(call.module, "layer_idx", -1), call.reads_encoder] = call.shape
    num_layers = len(calls) // 2
    expected = {(layer, reads) for layer in range(num_layers) for reads in (False, True)}
    if not shapes_by_layer or set(shapes_by_layer) != expected or len(calls) != len(expected):
        raise NotPageable("its decoder computes attention in its own way")
    for call in calls:
        has_bias = call.reads_encoder and call.bias is not None and bool(call.bias.any())
        if has_bias:
            raise NotPageable("the scores of its cross-attention get a bias")
    shapes = [shapes_by_layer[layer, False] for layer in range(num_layers)]
    if shapes != [shapes_by_layer[layer, True] for layer in range(num_layers)]:
        raise NotPageable("its two kinds of attention have keys of different shapes")
    return shapes


def _are_equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _states(calls: list[_Call]) -> list[torch.Tensor]:
    """Return the queries and keys of calls."""
    return [states for call in calls for states in (call.query, call.key)]
