"""Products by the faster library: the same numbers, chosen by the processor's name, and little memory for the code that oneDNN makes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from preftune.models import product
from preftune.models.product import add_product, onednn_is_faster

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
MIB_OF_MANY_SHAPES = 100  # without a bound, 150 shapes take 165 MiB (glibc 2.36, torch 2.13)
MANY_SHAPES = """
import sys, torch
from pathlib import Path
from preftune.models import product
from preftune.training.memory import resident_memory
product.CPUINFO = Path(sys.argv[1])
torch.set_num_threads(1)
x, weight = torch.randn(400, 256), torch.randn(256, 256)
with torch.no_grad():
    product.product(x, weight)
    before = resident_memory()
    for rows in range(399, 99, -1):
        product.product(x[:rows], weight)
print(product.onednn_is_faster(), (resident_memory() - before) >> 20)
"""


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Says what the system tells of its processor."""

    def is_called(vendor: str) -> None:
        monkeypatch.setattr(product, "CPUINFO", tmp_path / "cpuinfo")
        product.CPUINFO.write_text(f"processor : 0\nvendor_id : {vendor}\n", encoding="utf-8")
        onednn_is_faster.cache_clear()

    yield is_called
    onednn_is_faster.cache_clear()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_processors_name_chooses(processor):
    processor("AuthenticAMD")
    assert onednn_is_faster()
    processor("GenuineIntel")
    assert not onednn_is_faster()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel"])
def test_a_product_is_that_of_the_matrices(processor, vendor, turned):
    processor(vendor)
    x, bias, out = numbers(70, 256), numbers(320), numbers(70, 320)
    weight = numbers(256, 320).t() if turned else numbers(320, 256)
    expected = x.double() @ weight.double().t()
    with torch.no_grad():
        torch.testing.assert_close(product.product(x, weight, bias), (expected + bias).float(), rtol=1e-5, atol=1e-4)
        added = add_product(out, x, weight)
    assert added is out
    torch.testing.assert_close(out, (expected + numbers(70, 320)).float(), rtol=1e-5, atol=1e-4)


def test_small_products_other_types_and_gradients_go_torchs_own_way(processor, monkeypatch):
    processor("AuthenticAMD")
    monkeypatch.setattr(product, "onednn_product", lambda *_: pytest.fail("oneDNN was asked"))
    with torch.no_grad():
        product.product(numbers(63, 256), numbers(256, 256))
        product.product(numbers(70, 8), numbers(8, 8))
        product.product(numbers(70, 256).double(), numbers(256, 256).double())
    weight = numbers(256, 256).requires_grad_()
    product.product(numbers(70, 256), weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_many_numbers_of_rows_take_little_memory(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("vendor_id : AuthenticAMD\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", MANY_SHAPES, str(cpuinfo)], capture_output=True, text=True, check=True)
    faster, grown = done.stdout.split()
    assert faster == "True"
    assert int(grown) < MIB_OF_MANY_SHAPES
