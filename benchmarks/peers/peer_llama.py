"""The peer's process: llama.cpp on a GGUF of the same model, all clients in one batch.

peer_llama.py MODEL FOLDER TYPE CONTEXT writes a GGUF of this type (BF16 or Q8_0) to FOLDER, once;
FOLDER may also be a GGUF file. CONTEXT is one pool of tokens. llama-cpp-python's own class runs one
sequence at a time, so this script builds the steps as llama.cpp's server does: one token of each
running sequence, then prompts, up to BATCH tokens.
"""

import os
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from benchmarks.peers.bench_gguf import write
from benchmarks.peers.peer_loop import Clients, Prompts, Request, answer_rounds

BATCH = 512
MOST_SEQUENCES = 64


class LlamaCpp:
    """One context; `run_round` drives its steps."""

    def __init__(self, file: Path, context: int) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, BATCH, BATCH
        options.n_seq_max = MOST_SEQUENCES
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        assert self._context, "no context"
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def run_round(self, prompts: Prompts, new_tokens: int) -> dict[str, Any]:
        """Let each client send its prompts one after another."""
        clients = Clients(prompts, new_tokens)
        running = clients.first()
        said: dict[int, list[int]] = {}  # of each client: the tokens that are not computed yet
        place: dict[int, int] = {}
        for request in running:
            said[request.client], place[request.client] = list(request.prompt), 0
        while running:
            ends = self._compute(running, said, place)
            for request, token in ends:
                said[request.client] = [token]
                if not clients.got(request, 1):
                    continue
                running.remove(request)
                memory = llama_cpp.llama_get_memory(self._context)
                llama_cpp.llama_memory_seq_rm(memory, request.client, -1, -1)
                following = clients.done(request)
                if following is not None:
                    said[request.client], place[request.client] = list(following.prompt), 0
                    running.append(following)
        return clients.result()

    def _compute(
        self, running: list[Request], said: dict[int, list[int]], place: dict[int, int]
    ) -> list[tuple[Request, int]]:
        """Run one batch; return the next token of each request that is computed to its end."""
        batch, count = self._batch, 0
        ends: list[tuple[Request, int]] = []
        for request in sorted(running, key=lambda one: len(said[one.client])):
            client = request.client
            ids = said[client][: BATCH - count]
            said[client] = said[client][len(ids) :]
            for token in ids:
                batch.token[count] = token
                batch.pos[count] = place[client]
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = client
                batch.logits[count] = 0
                place[client] += 1
                count += 1
            if ids and not said[client]:
                batch.logits[count - 1] = 1
                ends.append((request, count - 1))
        batch.n_tokens = count
        failed = llama_cpp.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode: {failed}")
        return [(request, self._likeliest(row)) for request, row in ends]

    def _likeliest(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def _gguf_file() -> Path:
    """Return the file to load; write it first unless it is there."""
    model, folder, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if folder.suffix == ".gguf":
        return folder
    file = folder / f"{kind}.gguf"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(model, file, gguf.GGMLQuantizationType[kind])
    return file


def start() -> tuple[dict[str, Any], Any]:
    """Load; tell versions and settings."""
    file, context = _gguf_file(), int(sys.argv[4])
    peer = LlamaCpp(file, context)
    facts = {
        "llama_cpp_python": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode(),
        "settings": {"file": file.name, "n_ctx": context, "n_batch": BATCH, "kv_unified": True},
    }
    return facts, peer.run_round


if __name__ == "__main__":
    answer_rounds(start)
