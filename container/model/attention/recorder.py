"""Gives models an attention function for a while, such as one that records its arguments."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@contextlib.contextmanager
def registered(
    name: str, attend: Callable[..., Any], create_mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Register an attention function with transformers as `name`, until the block ends.

    `create_mask` creates its masks; without one, models create none. A model that still has this
    implementation afterwards needs another before it runs again.
    """
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    if create_mask is not None:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, create_mask)
    try:
        yield
    finally:
        # Deleting an item would remove a local function only, which some models do not see.
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)
        if create_mask is not None:
            ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name)
