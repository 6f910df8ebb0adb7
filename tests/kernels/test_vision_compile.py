"""The vision kernels compiled for A100 and H100/H200, held to a budget."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from rsd_fast.kernels.compile_check import CAPABILITIES, SHARED_LIMIT
from rsd_fast.kernels.vision.compile_check import builds, compile_build


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("build", builds(), ids=lambda build: build.name)
def test_vision_kernels_do_not_spill(build, capability):
    used = compile_build(build, capability)
    assert used.registers <= 128
    assert used.spills == 0
    assert used.shared <= SHARED_LIMIT
