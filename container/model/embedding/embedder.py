"""The embedder: runs a sentence-transformers model on batches of token ids.

Models whose layers allow it run without padding (container.model.attention.unpadded) and with
packed linear layers, after a check against the library's own forward pass at start; all others run
as in the library, padded, in groups of similar length.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import PretrainedConfig

from container.embedding.process import TextRows
from container.errors import ModelLoadError, one_line
from container.messages.embedder import Embed, Truncation
from container.model.attention import unpadded
from container.model.embedding.grouping import grouped
from container.model.embedding.modules import position_offset, shape_of
from container.model.embedding.text_encoder import EncodedText, Model, TextEncoder
from container.model.fallbacks import TRY_ANOTHER_DTYPE, Fallbacks
from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_linear import LinearFactory
from container.model.optimize.encoder_layers import replace_layers, restore_layers
from container.model.optimize.packing import pack
from container.model.reference_check import Reference

log = logging.getLogger(__name__)

CHECK_TEXTS = [
    "a",
    "Rivers of Europe",
    "The Danube flows through ten countries before it reaches the Black Sea.",
    "How do I return a parcel that arrived damaged?",
    "Texts of several lengths are compared before any is served.",
    "import os; print(os.environ.get('HOME'))",
    "In 1969 two people walked on the Moon for the first time, and a third stayed in orbit.",
    "Yes.",
]


class Embedder:
    """Implements TextModel: vectors before normalisation, scores before activation."""

    def __init__(
        self, model: Model, device: torch.device, kernels: Kernels | None, fallbacks: Fallbacks
    ) -> None:
        self._fallbacks = fallbacks
        self._linears = LinearFactory(kernels)
        self.shape = shape_of(model)
        self.config: PretrainedConfig = self.shape.first.model.config
        self.device = device
        self.dtype: torch.dtype = self.shape.first.model.dtype
        self.is_scoring = isinstance(model, CrossEncoder)
        self.is_sparse = isinstance(model, SparseEncoder)
        self.is_late_interaction = isinstance(model, MultiVectorEncoder)
        self.is_mean_similarity = (
            isinstance(model, MultiVectorEncoder) and model.similarity_fn_name == "meanmaxsim"
        )
        self.is_unpadded = False
        self.prompts = sorted(model.prompts)
        text_config = self.config.get_text_config()
        self.vocabulary: int = text_config.vocab_size
        positions: int = getattr(text_config, "max_position_embeddings", None) or 2**31
        self._position_offset = position_offset(self.shape.first.model)
        most = min(model.max_seq_length or positions, positions - self._position_offset)
        self._texts = TextEncoder(model, most, self.vocabulary)
        self.max_tokens = self._texts.limits.of("document" if self.is_late_interaction else None)
        tokenizer = model.tokenizer
        self._pad_id = tokenizer.pad_token_id or 0
        self._pads_left = tokenizer.padding_side == "left"

    @torch.inference_mode()
    def prepare(self, *, packs: bool = True) -> int:
        """Enable the faster forms that pass their checks; return the width of the model's rows.

        Forms that fail are among the fallbacks. `packs` packs the linear layers, which cannot be
        undone. Raises ModelLoadError if the model does not run, Mismatch if packed layers differ
        from its own.
        """
        num_queries = len(CHECK_TEXTS) // 2 if self.is_late_interaction else 0
        texts = self.encode(
            Embed(0, [*CHECK_TEXTS], truncation=Truncation.RIGHT, num_queries=num_queries)
        )
        modules = nn.ModuleList([self.shape.first, *self.shape.rest])
        try:
            reference = Reference(modules, lambda: self.rows(texts), self.dtype, self._fallbacks)
        except Exception as error:  # a model's code can raise anything
            raise ModelLoadError(f"the embedding model cannot be run: {error}") from error
        if self.device.type == "cpu":
            if self._can_be_unpadded():
                self._try_unpadded(texts, reference)
            log.info(
                "embedder: texts run %s", "unpadded" if self.is_unpadded else "in padded groups"
            )
            if packs and self._linears.packs(self.dtype):
                self._pack(texts, reference)
        return reference.own.shape[1]

    def encode(self, request: Embed) -> list[EncodedText]:
        """Encode a request's inputs as ids. Raises InvalidParameter or PromptTooLong."""
        return self._texts.encode(request)

    def run(self, texts: Sequence[EncodedText]) -> list[TextRows]:
        """Compute the rows of each text, in order; a sparse model's are terms, see `_terms`."""
        outputs = self._outputs(texts)
        if self.is_sparse:
            outputs = [_terms(output) for output in outputs]
        return [
            TextRows(output.numpy().tobytes(), len(output) if output.dim() == 2 else 1)
            for output in outputs
        ]

    def rows(self, texts: Sequence[EncodedText]) -> torch.Tensor:
        """Compute one row for each text: float32 [texts, width], in order.

        A late-interaction model has several for each.
        """
        outputs = self._outputs(texts)
        return torch.cat(outputs) if self.is_late_interaction else torch.stack(outputs)

    @torch.inference_mode()
    def _outputs(self, texts: Sequence[EncodedText]) -> list[torch.Tensor]:
        """Compute [width] for each text, or [tokens, width] where its tokens are asked for."""
        rows: list[torch.Tensor] = [torch.empty(0)] * len(texts)
        for group in grouped(texts, is_unpadded=self.is_unpadded):
            members = [texts[index] for index in group]
            features = (
                self._run_unpadded(members) if self.is_unpadded else self._run_padded(members)
            )
            if self.is_late_interaction:
                outputs = self._scored_vectors(features, members)
            elif members[0].per_token:
                outputs = self._token_vectors(features["token_embeddings"], members)
            else:
                outputs = list(self._finish(features))
            for index, output in zip(group, outputs, strict=True):
                rows[index] = output.float().cpu()
        return rows

    def _token_vectors(
        self, hidden: torch.Tensor, texts: list[EncodedText]
    ) -> Sequence[torch.Tensor]:
        """Split the first module's output, without its padding, into those of the texts."""
        lengths = [text.num_tokens for text in texts]
        if self.is_unpadded:
            return hidden[0].split(lengths)
        rows = zip(hidden, lengths, strict=True)
        return [row[-n:] if self._pads_left else row[:n] for row, n in rows]

    def _scored_vectors(
        self, features: dict[str, Any], texts: list[EncodedText]
    ) -> Sequence[torch.Tensor]:
        """Return the vectors of each text's tokens that count in a late interaction."""
        features = self._run_rest(features, texts)
        masks = features["attention_mask"].bool()
        return [row[mask] for row, mask in zip(features["token_embeddings"], masks, strict=True)]

    def _run_padded(self, texts: list[EncodedText]) -> dict[str, Any]:
        longest = max(text.num_tokens for text in texts)
        features: dict[str, Any] = {
            "input_ids": self._padded([text.token_ids for text in texts], longest, self._pad_id),
            "attention_mask": self._padded(
                [text.attended or [1] * text.num_tokens for text in texts], longest, 0
            ),
            "modality": texts[0].modality,
        }
        if any(text.type_ids for text in texts):
            types = [text.type_ids or [0] * text.num_tokens for text in texts]
            features["token_type_ids"] = self._padded(types, longest, 0)
        if any(text.expanded for text in texts):
            expanded = [text.expanded or [0] * text.num_tokens for text in texts]
            features["query_expansion_positions"] = self._padded(expanded, longest, 0)
        out: dict[str, Any] = self.shape.first(self._with_prompt(features, texts))
        return out

    def _run_unpadded(self, texts: list[EncodedText]) -> dict[str, Any]:
        lengths = [text.num_tokens for text in texts]
        ids = torch.tensor([token for text in texts for token in text.token_ids])
        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = self.shape.first.model(
            input_ids=ids[None],
            position_ids=positions[None] + self._position_offset,
            spans=unpadded.spans_of(lengths),
        ).last_hidden_state
        ends = torch.tensor([0, *lengths]).cumsum(0)
        features: dict[str, Any] = {"token_embeddings": hidden, "cu_seq_lens_q": ends}
        return self._with_prompt(features, texts)

    def _finish(self, features: dict[str, Any]) -> torch.Tensor:
        features = self._run_rest(features)
        out: torch.Tensor = features["scores" if self.is_scoring else "sentence_embedding"]
        return out.unsqueeze(-1) if out.dim() == 1 else out

    def _run_rest(
        self, features: dict[str, Any], texts: Sequence[EncodedText] = ()
    ) -> dict[str, Any]:
        """Run the modules behind the transformer; some of them depend on the texts' side."""
        rest = self.shape.rest
        if all(not list(module.parameters()) for module in rest) and "token_embeddings" in features:
            features["token_embeddings"] = features["token_embeddings"].float()
        side = texts[0].side if texts else None
        for module in rest:
            takes_side = "task" in getattr(module, "forward_kwargs", ())
            features = module(features, task=side) if takes_side else module(features)
        return features

    def _with_prompt(self, features: dict[str, Any], texts: list[EncodedText]) -> dict[str, Any]:
        if texts[0].prompt_length is not None:
            features["prompt_length"] = texts[0].prompt_length
        return features

    def _padded(self, rows: list[list[int]], longest: int, filler: int) -> torch.Tensor:
        filled = [
            [filler] * (longest - len(row)) + row
            if self._pads_left
            else row + [filler] * (longest - len(row))
            for row in rows
        ]
        return torch.tensor(filled, device=self.device)

    def _can_be_unpadded(self) -> bool:
        first = self.shape.first
        params = dict(first.modality_config.get("text") or {})
        return (
            not self.is_scoring
            and params.get("method") == "forward"
            and params.get("method_output_name") == "last_hidden_state"
            and first.model.is_backend_compatible()
            and isinstance(self.shape.rest[0], Pooling)
            and all(isinstance(module, Dense | nn.Identity) for module in self.shape.rest[1:])
        )

    def _pack(self, texts: list[EncodedText], reference: Reference) -> None:
        model = self.shape.first.model
        replaced = replace_layers(model, self._linears.kernels) if self.is_unpadded else []
        if replaced:
            try:
                reference.check(self.rows(texts), "fused encoder layers")
            except Exception as error:  # layers that only resemble a supported family's
                self._fallbacks.add(
                    "fused layers", f"disabled: {one_line(error)}", TRY_ANOTHER_DTYPE
                )
                restore_layers(replaced)
        pack(model, self._linears.linear, kernels=self._linears.kernels)
        reference.check(self.rows(texts), "packed layers")

    def _try_unpadded(self, texts: list[EncodedText], reference: Reference) -> None:
        original = self.shape.first.model.config._attn_implementation
        self.shape.first.model.set_attn_implementation(unpadded.NAME)
        self.is_unpadded = True
        try:
            reference.check(self.rows(texts), "unpadded attention")
        except Exception as error:  # custom attention, windows, masks; padding supports all
            self._fallbacks.add(
                "attention without padding",
                f"disabled, so texts are padded to the longest of a group: {one_line(error)}",
                "choose a model whose attention transformers can exchange, with full masks",
            )
            self.is_unpadded = False
            self.shape.first.model.set_attn_implementation(original)


def _terms(row: torch.Tensor) -> torch.Tensor:
    """The index and the value of each number that is not 0: [terms, 2].

    Indices are token ids, which float32 holds exactly below 2**24.
    """
    (index,) = row.nonzero(as_tuple=True)
    return torch.stack([index.float(), row[index]], dim=1)
