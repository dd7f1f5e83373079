"""The memory plan at start, and the error when memory does not suffice."""

import pytest
import torch

from container.engine.schedule import Batch, ScheduledSequence
from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams
from container.model.execution.factory import make_forward
from container.model.execution.forward_pass import ForwardPass
from container.model.execution.model_runner import TorchModelRunner
from container.model.execution.step_measurement import largest_step, measure_activations
from container.model.kv_cache.cache import KVCache
from container.model.loading.memory_plan import GIB, MemoryPlan
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")


def test_memory_plans_of_known_models() -> None:
    plan = MemoryPlan(15 * GIB, 3 * GIB // 2, GIB // 4, 8 * GIB, 65_536)
    assert plan.lines() == [
        "weights         15.00 GiB",
        "activations      1.50 GiB  the largest step, measured",
        "CUDA graphs      0.25 GiB",
        "KV cache         8.00 GiB  65,536 tokens, or 16 sequences of 4,096",
    ]
    assert len(MemoryPlan(15 * GIB, None, 0, 8 * GIB, 65_536).lines()) == 2


def test_the_table_has_the_states_of_a_recurrent_model() -> None:
    plan = MemoryPlan(GIB, None, 0, GIB, 65_536, GIB // 2, 64, 128)
    assert plan.lines()[-1] == "states           0.50 GiB  64 running sequences, 128 snapshots"


def test_the_largest_step_is_a_prompt_like_any_other() -> None:
    model = prepare(tiny_models.make("llama"), torch.float32, CPU)
    forward = make_forward(model, num_blocks=3, block_size=16)
    logits = forward.run(largest_step(40, 8, block_size=16, context=256))
    with torch.inference_mode():
        whole = tiny_models.make("llama")(torch.zeros(1, 40, dtype=torch.long)).logits[0]
    assert torch.allclose(logits, whole[-8:], atol=1e-3)
    assert measure_activations(model, 40, 8, 8, 256) is None  # torch counts on a GPU only
    assert model.weight_bytes == sum(p.nbytes for p in tiny_models.make("llama").parameters())


class Failing(torch.nn.Module):
    """A model that its device cannot run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, **_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "out of memory in a step of 20 tokens: request 12 of frontend-7 (20 of 20 tokens); the "
            "table in the log at start shows the memory use",
        ),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore"),
            "the GPU failed in a step of 20 tokens, or in the one after it: request 12 of "
            "frontend-7 (20 of 20 tokens); look in the kernel's log (dmesg) for an Xid",
        ),
    ],
)
def test_a_step_that_the_device_cannot_run_names_its_requests(
    error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = KVCache([], num_blocks=8, block_size=4, dtype=torch.float32, device=CPU)
    runner = TorchModelRunner(ForwardPass(Failing(error), cache, CPU))
    sequence = Sequence(12, list(range(20)), SamplingParams(4), frontend_id=b"frontend-7")
    sequence.block_table = list(range(5))
    with pytest.raises((type(error), MemoryError)):
        runner.execute(Batch((ScheduledSequence.of(sequence, 20),)))
    assert message in caplog.text
