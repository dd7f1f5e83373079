"""How a prompt that an encoder reads lies in its sequence.

    |---- prompt ----|-- padding --|- start -|--- completion ---|
    |== blocks of cross-attention ==|== blocks of the decoder's own tokens ==|

The encoder's outputs become keys and values of the decoder's cross-attention, in the blocks of the
prompt: they are written once, before the decoder's first token, and only read from then on. The
padding fills the last of these blocks, so that the decoder's tokens begin with a block of their
own. A sequence without an encoder has an encoder prompt of length 0.
"""

from dataclasses import dataclass
from hashlib import blake2b

from container.messages.images import ImageSpan

PADDING_ID = 0


@dataclass(slots=True)
class EncoderPrompt:
    """The tokens that the encoder reads, and where the decoder's tokens begin.

    `num_cached` of the tokens have their keys and values in cached blocks.
    """

    length: int = 0
    end: int = 0
    num_cached: int = 0

    def begin(self, num_cached: int) -> int:
        """Note how many tokens of the sequence are cached; return how many count as computed."""
        self.num_cached = min(num_cached, self.end)
        return max(num_cached, self.end)


def lay_out(
    prompt_ids: list[int], decoder_start: tuple[int, ...], block_size: int
) -> tuple[list[int], EncoderPrompt]:
    """Return the ids of a new sequence, which `decoder_start` ends, and its encoder prompt."""
    length = len(prompt_ids)
    end = -(-length // block_size) * block_size
    ids = [*prompt_ids, *[PADDING_ID] * (end - length), *decoder_start]
    return ids, EncoderPrompt(length, end)


def prompt_key_span(prompt_ids: list[int], encoder: EncoderPrompt) -> ImageSpan:
    """Return the span of a prompt's blocks, each of which depends on the whole prompt."""
    digest = blake2b(repr(prompt_ids).encode(), digest_size=16).digest()
    return ImageSpan(0, encoder.end, digest)
