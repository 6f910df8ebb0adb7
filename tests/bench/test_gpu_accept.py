"""What the sweep of launches times, looked at without a GPU."""

from __future__ import annotations

import pytest

from bench.gpu_accept import CANDIDATES, SHAPES
from rsd_fast.kernels.accept.triton_launch import Launch, launch_choice


@pytest.mark.parametrize(("shape", "batches"), CANDIDATES, ids=str)
def test_the_launch_that_is_shipped_is_among_the_candidates(shape: str, batches: tuple[int, ...]):
    candidates = [Launch(*each) for each in CANDIDATES[shape, batches]]
    assert len(set(candidates)) == len(candidates)
    for batch in batches:
        assert launch_choice(batch, SHAPES[shape], 4) in candidates
