"""Images of a prompt, as the frontend sends them to the engine."""

import msgspec


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """Numbers for the model: numpy's name of their type, their shape, their bytes in C order."""

    dtype: str
    shape: list[int]
    data: bytes


ImageTensors = dict[str, Tensor]  # by the names that the model's forward pass has for them


class ImageSpan(msgspec.Struct, frozen=True, array_like=True):
    """A run of image tokens in a prompt, `start` to `stop`, and a digest of its image's pixels."""

    start: int
    stop: int
    digest: bytes
