"""Reads the properties of this processor that decide which kernels run, and in which format."""

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch

from container.model.kernels import build as build_kernels

# What oneDNN's ONEDNN_MAX_CPU_ISA may name that has neither bfloat16 nor AMX, and no AMX.
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_WITHOUT_BF16 = {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core"}
_WITHOUT_BF16 |= {"avx512_core_vnni"}
_WITHOUT_AMX = _WITHOUT_BF16 | {"avx512_core_bf16", "avx512_core_fp16"}
# From Linux's asm/hwcap.h and elf.h for arm64.
_AT_HWCAP2, _HWCAP2_BF16 = 26, 1 << 14


def library_names() -> list[str]:
    """Return the instruction sets that this processor has, the best first, of those to choose from.

    Whether the tiles of AMX work shows only when they are used.
    """
    name = _vector_extension()
    return ["amx", name] if name == "avx512_bf16" and has_amx() else [name]


def _vector_extension() -> str:
    """Name the best vector extension that build.py knows and this processor has."""
    name = torch.backends.cpu.get_cpu_capability().lower()
    if "neon" in build_kernels.TARGETS:
        name = "neon_bf16" if _has_arm_bf16() else "neon"
    elif name == "avx512" and _has("avx512_bf16", _WITHOUT_BF16):
        name = "avx512_bf16"
    return name if name in build_kernels.TARGETS else "default"


def processor_name() -> str:
    """Name the processor by what decides the kernels: `amx`, `avx512_bf16`, `avx2`, `neon` ..."""
    return "amx" if has_amx() else _vector_extension()


def has_bf16() -> bool:
    """Whether products of bfloat16 are faster than those of float32."""
    return processor_name() in ("amx", "avx512_bf16", "neon_bf16")


def has_amx() -> bool:
    """Whether the processor has a matrix unit that oneDNN uses for many rows: Intel's AMX.

    ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY can turn it off, for oneDNN and for our kernels.
    """
    is_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return is_avx512 and _has("amx_tile", _WITHOUT_AMX)


def _has(feature: str, disabled_by: set[str]) -> bool:
    allowed = os.environ.get(ISA_VARIABLE, "").lower() not in disabled_by
    return allowed and bool(_capabilities().get(feature, False))


def _capabilities() -> Mapping[str, Any]:
    """Return torch's description of the processor, which torch has since 2.11."""
    get: Any = getattr(torch.cpu, "get_capabilities", dict)
    return cast("Mapping[str, Any]", get())


@cache
def _has_arm_bf16() -> bool:
    """Whether an arm64 processor has products of bfloat16, by Linux; elsewhere by torch."""
    getauxval = getattr(ctypes.CDLL(None), "getauxval", None)
    if getauxval is None:
        return bool(_capabilities().get("bf16", False))
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(getauxval(_AT_HWCAP2) & _HWCAP2_BF16)
