"""RMSNorm as one kernel (Zhang and Sennrich, 2019), and which norms it equals."""

import torch
from torch import nn

from container.model.kernels.cpu import Kernels, can_norm


class FusedRMSNorm(nn.Module):
    """Root-mean-square norm in one kernel (Zhang and Sennrich, 2019)."""

    def __init__(self, weight: torch.Tensor, eps: float, kernels: Kernels | None = None) -> None:
        super().__init__()
        self._kernels = kernels if kernels is not None and can_norm(weight) else None
        self.weight = weight
        self.eps = eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        weight = self.weight
        kernels = self._kernels
        if kernels is not None and rows.dtype == weight.dtype and rows.is_contiguous():
            return kernels.norm(rows, weight, self.eps)
        # Some models keep the residual stream in float32 beside weights in bfloat16.
        return nn.functional.rms_norm(rows, weight.shape, weight.to(rows.dtype), self.eps)


def norm_eps(module: nn.Module) -> float:
    """Return a norm's epsilon, which it adds to the mean square."""
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(module, name, None), float):
            return value
    return 1e-6


def is_plain_rms_norm(module: nn.Module) -> bool:
    """Whether a module is a plain RMSNorm; tries it, since some add one to the weight."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.Tensor):
        return False
    if [name for name, _ in module.named_parameters()] != ["weight"] or weight.dim() != 1:
        return False
    rows = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0)) * 3
    rows = rows.to(weight.device, weight.dtype)
    return torch.allclose(
        module(rows).float(),
        FusedRMSNorm(weight, norm_eps(module))(rows).float(),
        atol=1e-5 if weight.dtype == torch.float32 else 0.05,
        rtol=1e-5 if weight.dtype == torch.float32 else 0.02,
    )
