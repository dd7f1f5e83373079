"""Bindings of the compiled CPU kernels: a decoder layer's GEMMs and the ops between them.

csrc/ has the sources, build.py compiles them, loading/cpu_kernels.py loads and self-tests the
library once. Without one, layers run in PyTorch operations, which are slower.

A call passes addresses as ints: some 1 us, where an operation of torch takes 3 to 10.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from container.model.kernels import build as build_kernels

# Vectorised sizes are multiples of this, the numbers of the longest vector of csrc/simd.h.
LANES = 16
# As in csrc/simd.h.
MAX_DIM = 256
# Bytes of a cache line, at whose multiples stages begin.
LINE = 64
DTYPES = (torch.bfloat16, torch.float32)

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class StepArgs(ctypes.Structure):
    """`struct step` of csrc/attention.h, the same for all layers."""

    _fields_ = [
        ("cos", _POINTER), ("sin", _POINTER), ("slots", _POINTER), ("spans", _POINTER),
        ("blocks", _POINTER), ("rows", _INT), ("num_spans", _INT), ("block_size", _INT),
        ("num_decodes", _INT),
    ]  # fmt: skip


class LayerArgs(ctypes.Structure):
    """`struct layer` of csrc/attention.h."""

    _fields_ = [
        ("keys", _POINTER), ("values", _POINTER), ("norms", _POINTER), ("heads", _INT),
        ("kv_heads", _INT), ("dim", _INT), ("sinks", _POINTER), ("window", _INT),
        ("scale", _FLOAT), ("eps", _FLOAT), ("bf16", ctypes.c_int),
    ]  # fmt: skip


class WeightArgs(ctypes.Structure):
    """`struct weight` of csrc/gemm.h."""

    _fields_ = [
        ("numbers", _POINTER), ("scales", _POINTER), ("bias", _POINTER), ("block_of", _POINTER),
        ("inputs", _INT), ("outputs", _INT), ("block", _INT), ("blocks", _INT),
        ("kind", ctypes.c_int), ("half_scales", ctypes.c_int),
    ]  # fmt: skip


class GemmArgs(ctypes.Structure):
    """`struct product` of csrc/gemm.h."""

    _fields_ = [
        ("weight", _POINTER), ("x", _POINTER), ("add", _POINTER), ("out", _POINTER),
        ("rows", _INT), ("bf16", ctypes.c_int), ("fp32_out", ctypes.c_int), ("act", ctypes.c_int),
    ]  # fmt: skip


class DecoderLayerArgs(ctypes.Structure):
    """`struct decoder_layer` of csrc/decoder.h."""

    _fields_ = [
        ("norms", _POINTER * 2), ("eps", _FLOAT * 2), ("qkv", WeightArgs), ("o", WeightArgs),
        ("gate_up", WeightArgs), ("down", WeightArgs), ("attention", LayerArgs),
    ]  # fmt: skip


class DecoderArgs(ctypes.Structure):
    """`struct decoder` of csrc/decoder.h."""

    _fields_ = [
        ("step", _POINTER), ("layers", _POINTER), ("phases", _POINTER), ("x", _POINTER),
        ("normed", _POINTER), ("qkv", _POINTER), ("attn_out", _POINTER), ("gate_up", _POINTER),
        ("gated", _POINTER), ("num_layers", _INT), ("hidden", _INT), ("bf16", ctypes.c_int),
    ]  # fmt: skip


class EncoderLayerArgs(ctypes.Structure):
    """`struct encoder_layer` of csrc/encoder.h."""

    _fields_ = [
        ("qkv", WeightArgs), ("dense", WeightArgs), ("up", WeightArgs), ("down", WeightArgs),
        ("norms", _POINTER * 2), ("biases", _POINTER * 2), ("eps", _FLOAT * 2),
    ]  # fmt: skip


class EncoderArgs(ctypes.Structure):
    """`struct encoder` of csrc/encoder.h."""

    _fields_ = [
        ("starts", _POINTER), ("layers", _POINTER), ("phases", _POINTER), ("x", _POINTER),
        ("qkv", _POINTER), ("attn_out", _POINTER), ("up", _POINTER), ("num_texts", _INT),
        ("num_layers", _INT), ("hidden", _INT), ("heads", _INT), ("dim", _INT),
        ("scale", _FLOAT), ("bf16", ctypes.c_int),
    ]  # fmt: skip


class Phases:
    """Memory of `size` bytes in which threads note their progress; see csrc/thread_pool.h."""

    def __init__(self, size: int) -> None:
        self._memory = ctypes.create_string_buffer(size + LINE)
        begin = ctypes.addressof(self._memory)
        self.address = begin + -begin % LINE


class Kernels:
    """The library's functions. Tensors are contiguous and on the CPU; pointers are addresses."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.source_hash.restype = ctypes.c_char_p
        if library.source_hash().decode() != build_kernels.source_hash():
            raise OSError("it was compiled from other sources")
        self.name = path.stem.removeprefix("kernels-")
        self.add_norm = _typed(library.add_norm, [_POINTER] * 4 + [_FLOAT, _INT, _INT, _INT])
        self.silu_mul = _typed(library.silu_mul, [_POINTER] * 2 + [_INT, _INT, _INT])
        self._argmax = _typed(library.argmax, [_POINTER] * 2 + [_INT, _INT])
        self._exp_totals = _typed(library.exp_totals, [_POINTER] * 2 + [_INT, _INT])
        self.attend = _typed(library.attend, [_POINTER] * 4)
        self.gemm = _typed(library.gemm, [_POINTER])
        self.decode = _typed(library.decode, [_POINTER])
        self._supports_gemm = bool(library.supports_gemm())
        if (tiles := library.use_tiles()) < 0:
            raise OSError("Linux refuses AMX's tiles to this process")
        self._has_tiles = tiles > 0
        self.encode = _typed(library.encode, [_POINTER])
        self._decoder_phases: int = library.decoder_phases()
        self._encoder_phases: int = library.encoder_phases()
        _typed(library.set_parallel, [_POINTER, _POINTER])(*_torch_threads())

    def phases(self, *, decoder_layers: int = 0, encoder_layers: int = 0) -> Phases:
        """Allocate the memory for the stages of these layers."""
        size = decoder_layers * self._decoder_phases + encoder_layers * self._encoder_phases
        return Phases(size)

    @property
    def supports_gemm(self) -> bool:
        """Whether they have products, which are for rows of float32 and bfloat16."""
        return self._supports_gemm

    @property
    def has_tiles(self) -> bool:
        """Whether products of bfloat16 use AMX's tiles."""
        return self._has_tiles

    def norm(self, rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Root-mean-square norm of [..., width], where `can_norm`."""
        out = torch.empty_like(rows)
        width = len(weight)
        self.add_norm(
            None, rows.data_ptr(), weight.data_ptr(), out.data_ptr(), eps,
            rows.numel() // width, width, rows.dtype == torch.bfloat16,
        )  # fmt: skip
        return out

    def argmax(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the index of the first largest number of each row of float32 [rows, width]."""
        out = torch.empty(rows.shape[0], dtype=torch.int64)
        self._argmax(rows.data_ptr(), out.data_ptr(), *rows.shape)
        return out

    def log_sum_exp(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the sum of exponentials of each row of float32 [rows, width]."""
        out = torch.empty(rows.shape[0], 2)
        self._exp_totals(rows.data_ptr(), out.data_ptr(), *rows.shape)
        return out[:, 0] + out[:, 1].log()


def _typed(
    function: "ctypes._NamedFuncPointer", types: Sequence[type]
) -> "ctypes._NamedFuncPointer":
    function.argtypes, function.restype = types, None
    return function


def _torch_threads() -> tuple[int | None, int | None]:
    """Where torch's own OpenMP library runs something in its threads, and says how many there are.

    A second library would start its own threads, which then wait beside torch's.
    """
    libraries = Path(torch.__file__).parent / "lib"
    try:
        library = ctypes.CDLL(str(libraries / "libtorch_cpu.so"))
        functions = library.GOMP_parallel, library.omp_get_max_threads
    except (OSError, AttributeError):
        return None, None
    run, count = (ctypes.cast(function, _POINTER).value for function in functions)
    return run, count


def can_norm(weight: torch.Tensor) -> bool:
    """Whether the kernels can norm with a weight, given rows of its format."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and len(weight) % LANES == 0
        and weight.is_contiguous()
    )


def argmax(rows: torch.Tensor, kernels: Kernels | None) -> torch.Tensor:
    """Return the index of the first largest number of each row of [rows, width]: int64 [rows]."""
    if kernels is None or not _is_plain(rows):
        return rows.argmax(-1)
    return kernels.argmax(rows)


def log_sum_exp(rows: torch.Tensor, kernels: Kernels | None) -> torch.Tensor:
    """Return the logarithm of the sum of the exponentials of each row of [rows, width]: [rows]."""
    if kernels is None or not _is_plain(rows):
        return rows.logsumexp(-1)
    return kernels.log_sum_exp(rows)


def _is_plain(rows: torch.Tensor) -> bool:
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.is_contiguous()
