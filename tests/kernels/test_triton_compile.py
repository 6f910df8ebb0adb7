"""The Triton kernels compiled for A100 and H100/H200 on whatever machine this is, held to a budget."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from rsd_fast.kernels.compile_check import (
    CAPABILITIES,
    SHARED_LIMIT,
    SHIPPED,
    SPILLS_ALLOWED,
    Shape,
    compile_accept,
)

BUILDS = [
    (SHIPPED[0], "layer", "bf16"),
    (SHIPPED[0], "element typical expected", "fp16"),
    (SHIPPED[0], "sampled", "fp32"),
    (SHIPPED[1], "layer", "bf16"),
    (SHIPPED[1], "all expected", "bf16"),
]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("shape", "form", "dtype"), BUILDS)
def test_shipped_shapes_do_not_spill(shape, form, dtype, capability):
    used = compile_accept(shape, form, capability, dtype)
    assert 16 <= used.registers <= 128
    assert used.spills <= SPILLS_ALLOWED[form]
    assert used.shared <= SHARED_LIMIT


def test_the_largest_sizes_compile_within_shared_memory():
    used = compile_accept(Shape(16, 64, 32, 32, 64, 7), "element", 80)
    assert used.registers <= 128
    assert used.shared <= SHARED_LIMIT
