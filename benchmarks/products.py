"""How long products take: the kernels' beside torch's, the layers of the 135M shape in turn.

`GOMP_SPINCOUNT=2000 python -m benchmarks.products`; `--libraries amx avx512_bf16` compares the
kernels for several instruction sets. For each format and number of rows: times
(ms) of the 120 products of the 30 layers, fastest and median of some turns, of which each side
has one after the other. The weights of all layers are more than caches hold.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from container.model.kernels import build
from container.model.kernels.cpu import Kernels
from container.model.kernels.processor import library_names
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.int8_linear import Int8Linear
from container.model.layers.linear import FastLinear, PackedLinear
from container.model.layers.quantized_weight import quantized_to_int4

SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
LAYERS = 30
FORMATS = {
    "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.bfloat16,
    "int4": torch.float32,
}  # fmt: skip


def make_products(name: str, libraries: Sequence[str]) -> dict[str, list[FastLinear]]:
    """The products of all sides, on the same weights."""
    sides = {library: Kernels(build.library(library)) for library in libraries}
    if not all(kernels.supports_gemm for kernels in sides.values()):
        raise SystemExit(f"the kernels do not multiply {name} on this processor")
    int8_weights = name == "int8"
    made: dict[str, list[FastLinear]] = {side: [] for side in (*sides, "torch")}
    for outputs, inputs in SHAPES * LAYERS:
        weight = torch.randn(outputs, inputs).to(FORMATS[name])
        packed = quantized_to_int4(weight) if name == "int4" else weight
        for side, kernels in sides.items():
            made[side].append(CpuLinear(packed, None, kernels, int8_weights=int8_weights))
        other = Int8Linear(weight, None, None) if int8_weights else PackedLinear(weight, None)
        made["torch"].append(other)
    return made


def seconds(products: Sequence[FastLinear], inputs: dict[int, torch.Tensor]) -> float:
    """How long they take one after another."""
    started = time.perf_counter()
    for product in products:
        product(inputs[product.in_features])
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=[*FORMATS])
    parser.add_argument("--libraries", nargs="*", default=library_names()[:1])
    args = parser.parse_args()
    for name in args.formats:
        made = make_products(name, args.libraries)
        for rows in args.rows:
            inputs = {width: torch.randn(rows, width).to(FORMATS[name]) for _, width in SHAPES}
            times: dict[str, list[float]] = {side: [] for side in made}
            for _ in range(args.turns):
                for side, products in made.items():
                    times[side].append(seconds(products, inputs) * 1e3)
            row = [
                f"{side} {min(all_times):.2f} ms (median {statistics.median(all_times):.2f})"
                for side, all_times in times.items()
            ]
            print(f"{name}, {rows:>3} rows: {', '.join(row)}")


if __name__ == "__main__":
    main()
