"""What replaces a layer's form may ask of the checks: how accurate some layers are now."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from container.model.fallbacks import Fallbacks
from container.model.reference_check import Accuracy


class LayerTrial(Protocol):
    """Measures decoder layers of a model, on their inputs in the model's own forward pass.

    Layers of one variant have the same class, sizes and attention.
    """

    @property
    def fallbacks(self) -> Fallbacks:
        """Collects the forms that are not used because of a measurement."""
        ...

    @property
    def variants(self) -> Mapping[str, Hashable]:
        """The variant of each layer, by the layer's name."""
        ...

    @property
    def checked(self) -> Sequence[str]:
        """Names of the layers that can be measured."""
        ...

    def measure(self, names: list[str]) -> Accuracy:
        """Compare these layers in their current form. Raises what they raise."""
        ...
