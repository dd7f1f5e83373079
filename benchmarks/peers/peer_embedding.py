"""Peers of the embedder, each in its own process: the same weights, called directly.

    python -m benchmarks.peers.peer_embedding PEER MODEL_DIR

For each line of JSON on stdin, {"texts": [...], "batch": n}, embeds the texts n at a time and
answers {"times": [...], "vector": [...]}: the seconds of each batch, and the first vector. There is
no HTTP and no queue here, which favours the peers. `direct` is this server's own embedder, called
in the same way: the difference to the server is the overhead of HTTP and processes.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]


def sentence_transformers(folder: str, dtype: str) -> Encode:
    """The library's own `encode`."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
    return lambda texts: model.encode(texts, batch_size=len(texts), normalize_embeddings=True)


def onnxruntime(folder: str, dtype: str) -> Encode:
    """ONNX Runtime with all its graph optimisations; it has no bfloat16 for a CPU."""
    import onnxruntime as ort
    import torch

    module = _module(folder)
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        module,
        tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names),
        str(path),
        input_names=names,
        output_names=["vectors"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
        dynamo=False,
    )
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _padded(
        folder, lambda ids, mask: session.run(None, dict(zip(names, (ids, mask), strict=True)))[0]
    )


def openvino(folder: str, dtype: str) -> Encode:
    """OpenVINO, tuned for the latency of one batch, in the number format that is asked for."""
    import openvino as ov
    import torch

    example = {
        name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")
    }
    converted = ov.convert_model(_module(folder), example_input=example)
    hint = "bf16" if dtype == "bfloat16" else "f32"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    request = ov.Core().compile_model(converted, "CPU", options).create_infer_request()
    return _padded(folder, lambda ids, mask: request.infer([ids, mask])[0])


def direct(folder: str, dtype: str) -> Encode:
    """This server's embedder, without the server."""
    import torch

    from container.frontend.embedding.vectors import normalized
    from container.messages.embedder import Embed
    from container.model.embedder_loader import keep_memory, load_model
    from container.model.embedding.embedder import Embedder
    from container.model.fallbacks import Fallbacks
    from container.model.loading.cpu_kernels import load_kernels

    keep_memory()
    cpu = torch.device("cpu")
    model = load_model(Path(folder), cpu, getattr(torch, dtype))
    embedder = Embedder(model, cpu, load_kernels(), Fallbacks())
    embedder.prepare()

    def encode(texts: list[str]) -> np.ndarray:
        rows = embedder.run(embedder.encode(Embed(0, [*texts])))
        return normalized(np.stack([np.frombuffer(row, np.float32) for row in rows]))

    return encode


PEERS = {
    "direct": (direct, "float32"),
    "direct-bf16": (direct, "bfloat16"),
    "sentence-transformers": (sentence_transformers, "float32"),
    "sentence-transformers-bf16": (sentence_transformers, "bfloat16"),
    "onnxruntime": (onnxruntime, "float32"),
    "openvino": (openvino, "float32"),
    "openvino-bf16": (openvino, "bfloat16"),
}


def _module(folder: str) -> Any:
    """Ids and mask to normalised mean vectors, as MiniLM's configuration says, to be converted."""
    import torch
    from transformers import AutoModel

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)
            mask = attention_mask[..., None].float()
            mean = (hidden.last_hidden_state * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=-1)

    return Vectors()


def _padded(folder: str, run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Encode:
    """Tokenize a batch, pad it to its longest text, run it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def encode(texts: list[str]) -> np.ndarray:
        encoded = tokenizer.encode_batch(texts)
        ids = np.array([one.ids for one in encoded])
        return run(ids, np.array([one.attention_mask for one in encoded]))

    return encode


def main() -> None:
    """Answer rounds until stdin ends."""
    make, dtype = PEERS[sys.argv[1]]
    encode = make(sys.argv[2], dtype)
    encode(["warm", "up"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        texts, size = ask["texts"], ask["batch"]
        times, first = [], None
        for start in range(0, len(texts), size):
            started = time.perf_counter()
            vectors = encode(texts[start : start + size])
            times.append(time.perf_counter() - started)
            first = vectors[0].tolist() if first is None else first
        print(json.dumps({"times": times, "vector": first}), flush=True)


if __name__ == "__main__":
    main()
