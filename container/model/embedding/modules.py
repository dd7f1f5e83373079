"""The sentence-transformers modules of an embedding model: the transformer and the rest."""

from dataclasses import dataclass

from sentence_transformers.base.modules import Normalize, Transformer
from torch import nn

from container.errors import ModelLoadError
from container.model.embedding.text_encoder import Model


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's modules: the transformer, the rest, and whether normalisation comes last."""

    first: Transformer
    rest: list[nn.Module]
    is_normalized: bool


def shape_of(model: Model) -> Shape:
    """Split a model into its modules. Raises ModelLoadError for unsupported first modules."""
    modules = list(model)
    first = modules[0]
    if not isinstance(first, Transformer):
        raise ModelLoadError(
            f"the embedding model begins with {type(first).__name__}; only transformer models "
            "are served"
        )
    is_normalized = isinstance(modules[-1], Normalize)
    rest = modules[1:-1] if is_normalized else modules[1:]
    return Shape(first, rest, is_normalized)


def position_offset(model: nn.Module) -> int:
    """Return the first position: RoBERTa-like models count from the padding id on."""
    for module in model.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(
            getattr(module, "position_embeddings", None), nn.Embedding
        ):
            return padding_idx + 1
    return 0
