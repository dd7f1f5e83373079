"""Messages between a frontend and the embedder; container.messages.engine explains the rules.

Vectors are the float32 output of the model's last weighted layer. Frontends truncate and normalise
them and turn scores into probabilities, since the dialects differ in that.
"""

from enum import Enum
from typing import Literal

import msgspec

from container.messages.common import Abort, EngineState, Hello, RequestFailed

EmbedderKind = Literal["embedding", "sparse", "reranker", "classifier", "late_interaction"]


class Truncation(Enum):
    """The treatment of a text that is too long."""

    REFUSE = "refuse"
    LEFT = "left"
    RIGHT = "right"


class Pair(msgspec.Struct, frozen=True):
    """A pair of texts for a cross-encoder, such as a query and a document."""

    first: str
    second: str


EmbedInput = str | list[int] | Pair


class Embed(msgspec.Struct, tag="embed", frozen=True, omit_defaults=True):
    """Frontend to embedder: make one vector or row of scores for each input.

    Token ids are used unchanged: no special tokens and no prompt are added. `prompt_name` None
    means the model's default prompt, where it has one. `per_token`: one vector for each token,
    before pooling. The first `num_queries` inputs are queries and all after them documents, which
    late-interaction models encode differently. Errors name the inputs `field`; with a
    `query_field`, they name queries and the first texts of pairs so.

    `max_tokens` is the length of a text at which `truncation` sets in; `max_query_tokens` and
    `max_document_tokens` cut queries and documents, in pairs too, to a number of tokens, special
    ones not counted. 0 means no limit but the model's.
    """

    request_id: int
    inputs: list[EmbedInput]
    field: str = "inputs"
    prompt_name: str | None = None
    truncation: Truncation = Truncation.REFUSE
    per_token: bool = False
    num_queries: int = 0
    max_tokens: int = 0
    max_query_tokens: int = 0
    max_document_tokens: int = 0
    query_field: str = ""


class Embedded(msgspec.Struct, tag="embedded", frozen=True):
    """Embedder to one frontend: the whole answer. `rows` is float32 [rows, width], row by row.

    `lengths` are the rows of each input; empty where each has one. A sparse model's rows are terms:
    a token id and its weight.
    """

    request_id: int
    rows: bytes
    width: int
    num_tokens: int
    lengths: list[int] = []


class EmbedderInfo(msgspec.Struct, frozen=True):
    """Facts about the loaded model; they do not change while the embedder runs.

    `width` is the length of a vector, or the number of labels. `is_normalized`: the model's own
    configuration ends in a normalisation, which the frontend does. `is_mean_similarity`: the score
    of a late-interaction model is divided by the number of the query's vectors (MeanMaxSim).
    `fallbacks` are the reasons for which it is served more slowly than it could be, `not_proved`
    the parts that the checks at start left out.
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
    is_mean_similarity: bool = False
    fallbacks: list[str] = []
    not_proved: list[str] = []


class EmbedderLoad(msgspec.Struct, frozen=True):
    """The embedder's load; `batches`, `texts` and `tokens` count since the start."""

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
