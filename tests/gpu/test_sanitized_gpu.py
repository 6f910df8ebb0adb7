"""Every form of the accept kernel once, at small shapes: what compute-sanitizer runs (bench/run_gpu.sh)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rsd_fast.kernels.accept import AcceptParams
from tests.kernels.accept_cases import random_case
from tests.kernels.action_sizes import assert_actions_close
from tests.kernels.test_accept_reference import assert_same, assert_same_state

pytestmark = pytest.mark.gpu

BASE = AcceptParams(3, "element", "distance", 1, 0.0, "main", "middle", False, 0.0)
TENSOR_CORES = (515, 4, 8, 16, 7)  # four samples a program
SIZES = ((5, 3, 5, 7, 5), (3, 4, 8, 16, 7), TENSOR_CORES)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("granularity", ["element", "layer", "all", "sampled"])
def test_sanitized(granularity, sizes):
    elements = sizes[2] * sizes[3]
    sampling = granularity == "sampled"
    params = replace(
        BASE,
        stop=sizes[1],
        granularity="layer" if sampling else granularity,
        rule="distance" if sampling or sizes[4] == 5 else "typical",
        log_tau=-0.5,
        need=elements if sampling else elements // 2,
        expected=not sampling and sizes[4] == 7,
        temperature=0.7 if sampling else 0.0,
    )
    for seed, mid_round in enumerate((False, True)):
        case = random_case(params, sizes, seed, dtype=torch.bfloat16, hidden=64 * (sizes[4] == 7), mid_round=mid_round)
        got, wanted = case.to("cuda").run("triton").to("cpu"), case.run("reference")
        if sizes == TENSOR_CORES:
            assert_same_state(got, wanted)
            assert_actions_close(got.actions, wanted.actions, wanted.state.latents, case.decoder)
        else:
            assert_same(got, wanted)
