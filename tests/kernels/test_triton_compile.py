"""The Triton kernels compiled for A100 and H100/H200 on whatever machine this is, held to a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")

from rsd_fast.kernels.compile_check import (
    BATCHES,
    CAPABILITIES,
    SHARED_LIMIT,
    SHIPPED,
    Shape,
    compile_accept,
    launch_of,
)

BUILDS = [
    (SHIPPED[0], "layer", "bf16"),
    (SHIPPED[0], "element typical expected", "fp16"),
    (SHIPPED[0], "sampled", "fp32"),
    (SHIPPED[1], "layer", "bf16"),
    (SHIPPED[1], "element expected", "bf16"),
    (SHIPPED[1], "all expected", "bf16"),
    (replace(SHIPPED[1], redraft="middle"), "layer", "bf16"),
]
# The launch for the largest batches differs from that for large ones only in when the decoder's weights are read.
BUILDS_AT = [(*build, batch) for build in BUILDS for batch in (BATCHES if build[0].hidden else BATCHES[:2])]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("shape", "form", "dtype", "batch"), BUILDS_AT)
def test_shipped_shapes_do_not_spill(shape, form, dtype, capability, batch):
    used = compile_accept(shape, form, capability, dtype, launch_of(shape, form, dtype, batch))
    assert 16 <= used.registers <= 168  # 12 warps a multiprocessor
    assert used.spills == 0
    assert used.shared <= SHARED_LIMIT


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_time_of_large_batches_is_memory(capability):
    """Instructions a sample, which keep four schedulers busy for less than its bytes take at 4 TB/s on 132 SMs."""
    for shape, most in zip(SHIPPED, (500, 3300), strict=True):
        launch = launch_of(shape, "layer", "bf16", BATCHES[-1])
        used = compile_accept(shape, "layer", capability, launch=launch)
        rounds = -(-shape.layers // launch.unroll) - 1
        assert (used.instructions + rounds * used.largest_loop) * used.warps / launch.samples <= most


def test_the_largest_sizes_compile_within_shared_memory():
    used = compile_accept(Shape(16, 64, 32, 32, 64, 7), "element", 80)
    assert used.registers <= 128
    assert used.shared <= SHARED_LIMIT
