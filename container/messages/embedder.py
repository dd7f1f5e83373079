"""What crosses between a frontend and the embedder; see container.messages.engine for the rules.

Vectors cross as they leave the model's last weighted layer, in float32. Cutting, normalising and
turning scores into probabilities is a frontend's work, since dialects differ in it.
"""

from enum import Enum
from typing import Literal

import msgspec

from container.messages.common import Abort, EngineState, Hello, RequestFailed

EmbedderKind = Literal["embedding", "reranker", "classifier"]


class Truncation(Enum):
    """What is done with a text that is too long."""

    REFUSE = "refuse"
    LEFT = "left"
    RIGHT = "right"


class Pair(msgspec.Struct, frozen=True):
    """Two texts that a cross-encoder reads together, such as a query and a document."""

    first: str
    second: str


EmbedInput = str | list[int] | Pair


class Embed(msgspec.Struct, tag="embed", frozen=True, omit_defaults=True):
    """Frontend to embedder: make one vector or row of scores for each input.

    Token ids are taken as they are: no special tokens and no prompt are added. `prompt_name` None
    means the model's default prompt, where it has one. `field` is the inputs' name in messages.
    """

    request_id: int
    inputs: list[EmbedInput]
    field: str = "inputs"
    prompt_name: str | None = None
    truncation: Truncation = Truncation.REFUSE


class Embedded(msgspec.Struct, tag="embedded", frozen=True):
    """Embedder to one frontend: the whole answer. `rows` is float32 [inputs, width], row by row."""

    request_id: int
    rows: bytes
    width: int
    num_tokens: int


class EmbedderInfo(msgspec.Struct, frozen=True):
    """What a frontend needs to know of the loaded model; fixed for an embedder's life.

    `width` is the length of a vector, or the number of labels. `is_normalized`: the model's own
    configuration ends in a normalisation, which the frontend does.
    """

    model_id: str
    model_sha: str | None
    model_type: str
    kind: EmbedderKind
    dtype: str
    device: str
    width: int
    vocabulary: int
    max_input_tokens: int
    is_normalized: bool
    labels: list[str]
    prompts: list[str]


class EmbedderLoad(msgspec.Struct, frozen=True):
    """How busy the embedder is; the counters only grow."""

    requests: int = 0
    waiting_texts: int = 0
    batches: int = 0
    texts: int = 0
    tokens: int = 0


class EmbedderStatus(msgspec.Struct, tag="status", frozen=True):
    """Embedder to every frontend, several times a second: life sign, state and load."""

    state: EngineState
    detail: str
    info: EmbedderInfo | None = None
    load: EmbedderLoad = EmbedderLoad()


ToEmbedder = Hello | Embed | Abort
FromEmbedder = EmbedderStatus | Embedded | RequestFailed

to_embedder_decoder = msgspec.msgpack.Decoder(ToEmbedder)
from_embedder_decoder = msgspec.msgpack.Decoder(FromEmbedder)
