"""The peer's process: openvino-genai's continuous batching, on the model as OpenVINO exports it.

peer_openvino.py MODEL EXPORTED DTYPE: optimum-intel writes the export there, once. Weights are
float16 in the file, and computed in DTYPE; the cache's format is OpenVINO's own default.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.peer_loop import Clients, Prompts, Request, answer_rounds

SCHEDULER: dict[str, Any] = {
    "cache_size": 1,  # GiB
    "max_num_batched_tokens": 256,
    "max_num_seqs": 64,
    "dynamic_split_fuse": True,
    "enable_prefix_caching": False,
}
PRECISIONS = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}


def export(model: Path, exported: Path) -> None:
    """Convert the model, unless that was done before."""
    if (exported / "openvino_detokenizer.xml").is_file():
        return
    tool = Path(sys.executable).with_name("optimum-cli")
    options = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
    command = [tool, "export", "openvino", "--model", model, *options, exported]
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


class OpenVino:
    """One pipeline; `run_round` drives its steps."""

    def __init__(self, exported: Path, properties: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        for name, value in SCHEDULER.items():
            setattr(scheduler, name, value)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(exported), scheduler, "CPU", properties
        )
        self._count = 0

    def run_round(self, prompts: Prompts, new_tokens: int) -> dict[str, Any]:
        """Let each client send its prompts one after another."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        clients = Clients(prompts, new_tokens)
        running = [(request, self._add(request, config)) for request in clients.first()]
        while running:
            self._pipeline.step()
            still = []
            for request, handle in running:
                if handle.can_read():
                    [output] = handle.read().values()
                    if clients.got(request, len(output.generated_ids)):
                        following = clients.done(request)
                        if following is not None:
                            still.append((following, self._add(following, config)))
                        continue
                still.append((request, handle))
            running = still
        return clients.result()

    def _add(self, request: Request, config: Any) -> Any:
        self._count += 1
        ids = openvino.Tensor(np.array([request.prompt], np.int64))
        return self._pipeline.add_request(self._count, ids, config)


def start() -> tuple[dict[str, Any], Any]:
    """Load; tell versions and settings."""
    model, exported = Path(sys.argv[1]), Path(sys.argv[2])
    properties = {"INFERENCE_PRECISION_HINT": PRECISIONS[sys.argv[3]]}
    export(model, exported)
    peer = OpenVino(exported, properties)
    facts = {
        "openvino": openvino.__version__,
        "openvino_genai": openvino_genai.__version__,
        "settings": SCHEDULER | properties,
    }
    return facts, peer.run_round


if __name__ == "__main__":
    answer_rounds(start)
