"""The vision ops in Triton, and the fused tower, on a GPU."""

from __future__ import annotations

import pytest
import torch

from rsd_fast.kernels.registry import pick
from rsd_fast.kernels.vision import add_layer_norm_, gelu_, normalized_patches
from rsd_fast.models.fused_vision import FusedVisionTower, fuse_vision
from rsd_fast.models.vision import VisionTower
from tests.kernels.interpreted_vision import DTYPES, ROUNDING, assert_rounded_alike, normal
from tests.models.test_fused_vision import CONFIGS, pictures, randomized

pytestmark = pytest.mark.gpu


def test_triton_is_what_runs_on_a_gpu():
    assert {pick(op, "cuda").name for op in ("normalized_patches", "add_layer_norm_", "gelu_")} == {"triton"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (3, 5, 7), (2, 261, 1024), (2, 256, 1152)], ids=str)
def test_add_layer_norm(shape, dtype):
    width = shape[-1]
    weight, bias, scale = (normal(width, dtype=dtype, seed=seed).cuda() for seed in (1, 2, 3))
    for branch, factors in ((None, None), (normal(*shape, dtype=dtype, seed=4).cuda(), None), (weight, scale)):
        branch = branch.expand(shape).contiguous() if branch is not None else None
        results = []
        for backend in ("triton", "reference"):
            x = (3 * normal(*shape, dtype=dtype) + 1).cuda()
            results.append((add_layer_norm_(x, branch, factors, weight, bias, 1e-6, backend=backend), x))
        (got, got_x), (wanted, wanted_x) = results
        assert_rounded_alike(got_x, wanted_x)
        torch.testing.assert_close(got, wanted, rtol=4 * ROUNDING[dtype], atol=4 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_and_patches(dtype):
    got, wanted = ((4 * normal(522, 4096, dtype=dtype)).cuda() for _ in range(2))
    gelu_(got, backend="triton")
    gelu_(wanted, backend="reference")
    assert_rounded_alike(got, wanted)
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, device="cuda")
    tables = normal(2, 3, seed=6).cuda() / 255, normal(2, 3, seed=7).cuda()
    rows = [normalized_patches(images, *tables, 14, 640, dtype, backend=name) for name in ("triton", "reference")]
    assert_rounded_alike(*rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fused_tower_is_as_near_to_fp32_as_the_plain_one(name):
    config = CONFIGS[name]
    images = pictures(config).cuda()
    with torch.inference_mode():
        exact = randomized(config).cuda()(images)
        tower = randomized(config, torch.bfloat16).cuda()
        fused = fuse_vision(tower)
        assert isinstance(fused, FusedVisionTower)
        errors = [(run(images).float() - exact).norm() / exact.norm() for run in (tower, fused)]
    assert errors[1] <= 1.2 * errors[0] < 0.03


def captured_features(tower: VisionTower, images: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            tower(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = tower(images)
    return graph, features


def test_one_stream_two_streams_and_replays_give_the_same_bits():
    """Other images in every round: what one stream left behind must not reach the other."""
    tower = randomized(CONFIGS["fused"], torch.bfloat16).cuda()
    single, double = (FusedVisionTower(tower, streams=streams) for streams in (False, True))
    static = pictures(tower.config).cuda()
    with torch.inference_mode():
        graph, features = captured_features(double, static)
        for seed in range(20):
            generator = torch.Generator("cuda").manual_seed(seed)
            static.copy_(torch.randint(0, 256, static.shape, dtype=torch.uint8, device="cuda", generator=generator))
            wanted = single(static)
            assert torch.equal(double(static), wanted)
            graph.replay()
            assert torch.equal(features, wanted)
