"""The products of hidden states with weights, by whichever of torch's two libraries is the faster one on this processor.

torch multiplies float32 on x86 by Intel's MKL, and carries oneDNN beside it. On AMD's processors oneDNN reads the same weights, as they
lie, and multiplies 10 to 40 % faster (docs/benchmarks.md); on Intel's nobody has measured it for many rows, so there MKL stays.
The choice goes by the processor's name and not by the clock: two runs on one machine must give the same last digits.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch
from torch import Tensor, nn

CPUINFO = Path("/proc/cpuinfo")
LEAST, LEAST_ROWS = 1 << 16, 64  # weights and rows of a product; of fewer, the call itself and laying out the weights take the time
# oneDNN makes code for each number of rows, 0.6 MiB a product, and keeps that of the last thousand: 0.7 GiB of a long run. So many are
# enough for all products of one pass through the layers and the head.
CODES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weightᵀ + bias [N, out]. x: float [N, in]. weight: float [out, in], of any strides. bias: float [out].

    Where gradients are on, that is torch's own way: oneDNN's has none.
    """
    return onednn_product(x, weight, bias) if _by_onednn(x, weight) else nn.functional.linear(x, weight, bias)


def add_product(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x weightᵀ to `out` [N, out] in place and return it. Otherwise as `product`."""
    return out.add_(onednn_product(x, weight, None)) if _by_onednn(x, weight) else out.addmm_(x, weight.t())


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    return plain and weight.numel() >= LEAST and len(x) >= LEAST_ROWS and onednn_is_faster()


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weightᵀ + bias by oneDNN, as `product`."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def keep_little_code() -> None:
    """Let oneDNN keep the code of some products and not of a thousand. It reads this at its first product, so this comes before."""
    for name, number in CODES.items():
        os.environ.setdefault(name, number)


@functools.cache
def onednn_is_faster() -> bool:
    """Say whether products go by oneDNN: this build of torch has it, as its own compiler calls it, and the processor is AMD's."""
    if not torch.backends.mkldnn.is_available() or not _is_amd():
        return False
    keep_little_code()
    x, weight = torch.ones(3, 16), torch.arange(64.0).view(4, 16)
    try:
        found = onednn_product(x, weight, None)
    except (AttributeError, RuntimeError, TypeError):  # another version of torch
        return False
    return torch.equal(found, nn.functional.linear(x, weight))


def _is_amd() -> bool:
    told = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.exists() else platform.processor()
    return "AuthenticAMD" in told
