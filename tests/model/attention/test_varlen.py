"""The tables for torch's attention kernel, and that a kernel that is wrong is not used.

No GPU is here, so a slow function that does what torch documents of `varlen_attn` plays the kernel.
"""

import copy
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import AuxRequest

from container.engine.engine import Engine
from container.messages.engine import SamplingParams
from container.model.attention.metadata import AttentionParams
from container.model.attention.varlen import REFERENCE_ONLY, AttentionKernels, Kernel
from container.model.execution.cuda_graphs import capture_nothing
from container.model.execution.forward_pass import ForwardPass
from container.model.execution.model_runner import TorchModelRunner
from container.model.fallbacks import Fallbacks
from container.model.kv_cache.cache import KVCache, LayerShape
from container.model.loading import attention_backend
from container.model.loading.attention_backend import choose_kernels, kernel_accuracy
from tests.support.engines import Job, engine_config, ids, run
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare

CPU = torch.device("cpu")
TORCHS = [AttentionKernels(kind, kind) for kind in (Kernel.PAGED, Kernel.GATHERED)]
TRITON_MIXES = [
    AttentionKernels(Kernel.TRITON, kind) for kind in Kernel if kind is not Kernel.TRITON
]
Attend = Callable[..., torch.Tensor]


def documented(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
    return_aux: AuxRequest | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What torch.nn.attention.varlen says that it computes, a sequence at a time."""
    assert window_size[1] == 0
    assert enable_gqa == (query.shape[1] != key.shape[-2])
    if block_table is None:
        assert cu_seq_k is not None
        ints, ends = [cu_seq_q, cu_seq_k], cu_seq_k.tolist()
        used = [stop - start for start, stop in pairwise(ends)]
        row_keys, row_values = ([one[a:b] for a, b in pairwise(ends)] for one in (key, value))
    else:
        assert seqused_k is not None
        assert (cu_seq_k, num_splits) == (None, 1)
        ints, used = [cu_seq_q, seqused_k, block_table], seqused_k.tolist()
        row_keys, row_values = (
            [one[row.long()].flatten(0, 1)[:n] for row, n in zip(block_table, used, strict=True)]
            for one in (key, value)
        )
    assert {one.dtype for one in ints} == {torch.int32}
    out, log_sum_exp = torch.empty_like(query), torch.empty(query.shape[:2])
    starts = cu_seq_q.tolist()
    assert max_q == max(b - a for a, b in pairwise(starts))
    assert max_k >= max(used)  # a recording knows only what may be
    for index, length in enumerate(used):
        rows = slice(starts[index], starts[index + 1])
        keys, values = (one[index].transpose(0, 1) for one in (row_keys, row_values))
        q = query[rows].transpose(0, 1)
        group = q.shape[0] // keys.shape[0]
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        positions = torch.arange(length - q.shape[1], length)[:, None]
        hidden = torch.arange(length)[None] > positions
        if window_size[0] >= 0:
            hidden |= torch.arange(length)[None] < positions - window_size[0]
        scores = (q.float() @ keys.float().transpose(1, 2)) * scale
        scores = scores.masked_fill(hidden, -torch.inf)
        out[rows] = (scores.softmax(-1) @ values.float()).to(query.dtype).transpose(0, 1)
        log_sum_exp[rows] = scores.logsumexp(-1).t()
    if return_aux is None:
        return out
    assert return_aux.lse
    return out, log_sum_exp


def in_flash_order(*args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`documented` with the log-sum-exp as FlashAttention has it: [heads, tokens]."""
    result = documented(*args, **kwargs)
    return result if isinstance(result, torch.Tensor) else (result[0], result[1].t())


def decoded(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lens: torch.Tensor,
    *,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None,
    sinks: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    is_latent: bool,
) -> torch.Tensor:
    """Stand in for the Triton kernel of decodes (triton_interpreter_cases.py has its tests), a row
    at a time.
    """
    assert query.is_contiguous()
    assert (chunk, key_bias, is_latent) == (None, None, False)  # tests/model/kernels/ has them
    assert {tables.dtype, lens.dtype} == {torch.int32}
    assert len(tables) == len(lens) == len(query) > 0
    group = query.shape[1] // kv_heads
    rows = []
    for q, table, length in zip(query, tables, lens.tolist(), strict=True):
        k, v = (
            one.unflatten(0, (-1, kv_heads))[table.long()].transpose(0, 1).flatten(1, 2)[:, :length]
            for one in (keys, values)
        )
        first = max(0, length - window) if window is not None else 0
        k, v = (one[:, first:].float().repeat_interleave(group, 0) for one in (k, v))
        scores = (k @ q.float()[..., None])[..., 0] * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if sinks is not None:
            scores = torch.cat([scores, sinks.float()[:, None]], -1)
            v = torch.nn.functional.pad(v, (0, 0, 0, 1))
        rows.append((scores.softmax(-1)[:, None] @ v)[:, 0].to(query.dtype))
    return torch.stack(rows)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Attend], None]:
    def use(attend: Attend, decode: Attend = decoded) -> None:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend)
        monkeypatch.setattr("container.model.kernels.triton_attention.decode_attention", decode)

    return use


@pytest.mark.parametrize("kernels", [*TORCHS, *TRITON_MIXES], ids=str)
@pytest.mark.parametrize("window", [None, 1, 7, 30, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(
    ("attend", "has_sinks"), [(documented, False), (documented, True), (in_flash_order, True)]
)
def test_the_kernel_gets_the_arguments_of_the_reference(
    kernel: Callable[[Attend], None],
    heads: int,
    kv_heads: int,
    window: int | None,
    kernels: AttentionKernels,
    attend: Attend,
    has_sinks: bool,
) -> None:
    kernel(attend)
    sinks = torch.linspace(-3, 3, heads) if has_sinks else None
    layer = LayerShape(kv_heads, 8, 8)
    attn_params = AttentionParams(0.3, window, heads=heads, sinks=sinks)
    accuracy = kernel_accuracy(kernels, layer, attn_params, torch.float32, torch.float32, CPU)
    assert accuracy.is_accepted, accuracy


@pytest.mark.parametrize("kernels", [*TORCHS, *TRITON_MIXES], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "qwen3_moe", "gpt_oss"])
def test_engines_with_the_kernels_give_the_same_tokens(
    kernel: Callable[[Attend], None], name: str, kernels: AttentionKernels
) -> None:
    kernel(documented)
    model = prepare(tiny_models.make(name), torch.float32, CPU)
    config = engine_config(max_batch_tokens=24)
    assert model.layers is not None
    # The compiled or fused layers of a CPU do not ask for attention in this way.
    module = copy.deepcopy(tiny_models.make(name))
    module.set_attn_implementation("paged")
    cache = KVCache(
        model.layers, num_blocks=config.num_blocks, block_size=config.block_size,
        dtype=torch.float32, device=CPU,
    )  # fmt: skip
    runner = TorchModelRunner(ForwardPass(module, cache, CPU, kernels=kernels))
    if kernels.decodes is not Kernel.GATHERED:
        runner.forward.capture([2, 4], config.num_blocks, capture_nothing, lambda _: None)
        assert runner.forward.has_graphs
    engine = Engine(runner, config, end_token_ids=())
    rnd = random.Random(2)
    jobs = [
        Job(
            [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 50))],
            SamplingParams(rnd.randint(1, 20)),
            at_step=rnd.randrange(10),
        )
        for _ in range(8)
    ]
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"


def _broken(*_: object, **__: object) -> torch.Tensor:
    raise RuntimeError("this GPU is too old")


def _wrong(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
    attend = decoded if "kv_heads" in kwargs else documented
    return attend(*args, **kwargs) * 1.02  # type: ignore[arg-type, operator, return-value]


def _old(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
    if "block_table" in kwargs:
        raise RuntimeError("paged KV needs FlashAttention 3")
    return documented(*args, **kwargs)  # type: ignore[arg-type]


def _of_torch_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`documented` with the arguments of torch 2.11, where groups of heads need no word."""
    return documented(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size,
        enable_gqa=query.shape[1] != key.shape[-2], return_aux=return_aux,
    )  # fmt: skip


@pytest.mark.parametrize("decode", [decoded, _broken, _wrong])
@pytest.mark.parametrize(
    ("attend", "chosen", "log_line"),
    [
        (documented, Kernel.PAGED, "passed its check"),
        (_old, Kernel.GATHERED, "RuntimeError: paged KV needs FlashAttention 3"),
        (_of_torch_2_11, Kernel.GATHERED, "unexpected keyword argument 'seqused_k'"),
        (_broken, Kernel.REFERENCE, "its check failed: RuntimeError: this GPU is too old"),
        (_wrong, Kernel.REFERENCE, "disabled: it is off by"),
    ],
)
def test_a_kernel_that_fails_its_self_test_is_disabled(
    kernel: Callable[[Attend, Attend], None],
    on_this_cpu: None,
    caplog: pytest.LogCaptureFixture,
    attend: Attend,
    decode: Attend,
    chosen: Kernel,
    log_line: str,
) -> None:
    caplog.set_level("INFO")
    kernel(attend, decode)
    layers, layer_attn_params = (
        [LayerShape(2, 8, 8)] * 2,
        [AttentionParams(0.3, heads=4), AttentionParams(0.3, 5, heads=4)],
    )
    formats = torch.bfloat16, torch.bfloat16
    decodes = Kernel.TRITON if decode is decoded else chosen
    fallbacks = Fallbacks()
    kernels = choose_kernels(layers, layer_attn_params, *formats, torch.device("cuda"), fallbacks)
    assert kernels == AttentionKernels(decodes, chosen)
    assert log_line in caplog.text
    lines = "\n".join(fallbacks.lines)
    assert (f"{Kernel.TRITON.value} disabled" in lines) == (decode is not decoded)
    assert ("PyTorch's operations serve" in lines) == (chosen is Kernel.REFERENCE)


@pytest.fixture
def on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU stands in for the GPU on which the check would run."""
    measured = attention_backend.kernel_accuracy
    monkeypatch.setattr(
        attention_backend,
        "kernel_accuracy",
        lambda *kernel_args: measured(*(*kernel_args[:5], CPU)),
    )
    monkeypatch.setattr(attention_backend, "activate_flash_attention_impl", lambda _: None)


def test_decodes_use_triton_where_torchs_kernels_cannot(
    kernel: Callable[[Attend], None], on_this_cpu: None
) -> None:
    kernel(documented)
    layers, layer_attn_params = [LayerShape(2, 8, 8)], [AttentionParams(0.3, heads=4)]
    gpu, half, whole = torch.device("cuda"), torch.bfloat16, torch.float32
    attention_kernels = AttentionKernels(Kernel.TRITON, Kernel.REFERENCE)
    capped = [AttentionParams(0.3, softcap=5.0, heads=4)]
    for shapes, params, dtype, cache_dtype, reason in (
        (layers, layer_attn_params, whole, whole, "set DTYPE=bfloat16"),
        (layers, layer_attn_params, half, torch.float8_e4m3fn, "unset KV_CACHE_DTYPE"),
        ([LayerShape(1, 8, 4)], layer_attn_params, half, half, "keys and values differ in width"),
        (layers, capped, half, half, "it has layers with a soft cap"),
    ):
        fallbacks = Fallbacks()
        chosen = choose_kernels(shapes, params, dtype, cache_dtype, gpu, fallbacks)
        assert chosen == attention_kernels
        [line] = fallbacks.lines
        assert reason in line
    fallbacks = Fallbacks()
    mixed = choose_kernels(layers * 2, layer_attn_params + capped, half, half, gpu, fallbacks)
    assert mixed == AttentionKernels(Kernel.TRITON, Kernel.PAGED)
    assert "layers with a soft cap, ALiBi or chunks use PyTorch's operations" in fallbacks.lines[0]
    fallbacks = Fallbacks()
    chosen = choose_kernels(layers, layer_attn_params, half, half, CPU, fallbacks)
    assert (chosen, fallbacks.lines) == (REFERENCE_ONLY, ())
    nothing = choose_kernels([], [], half, half, gpu, fallbacks)
    assert (nothing, fallbacks.lines) == (REFERENCE_ONLY, ())
