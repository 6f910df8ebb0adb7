"""Blocks compiled one by one: the same results, shared code, nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from rsd_fast.models.main import MainModel
from rsd_fast.models.presets import MAIN_PRESETS
from rsd_fast.train import regions
from rsd_fast.train.regions import compile_regions, restore_regions

BATCH = 3


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts programs, and makes them without a C++ compiler."""
    torch._dynamo.reset()
    counting = CompileCounterWithBackend("aot_eager")
    compile_with = torch.compile
    monkeypatch.setattr(regions.torch, "compile", lambda *a, **named: compile_with(*a, backend=counting, **named))
    return counting


def features(model: MainModel) -> torch.Tensor:
    config = model.config
    images = torch.arange(BATCH * 2 * 32 * 32 * 3).remainder(251).to(torch.uint8).view(BATCH, 2, 32, 32, 3)
    x = model.projector(model.encode_images(images))
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    return model.backbone.prefill(x, mask)[2][..., : config.backbone.width]


def test_blocks_share_their_programs_and_compute_the_same(counter: CompileCounterWithBackend):
    model = MainModel(MAIN_PRESETS["tiny"])
    plain = copy.deepcopy(model)
    names = list(model.state_dict())
    compile_regions(model)
    for each in (model, plain):
        features(each).square().mean().backward()
    assert counter.frame_count == 3  # two decoder layers share one; a vision block, the patches
    assert torch.allclose(features(model), features(plain), atol=1e-5)
    for compiled, own in zip(model.parameters(), plain.parameters(), strict=True):
        assert (compiled.grad is None) == (own.grad is None)
        assert own.grad is None or torch.allclose(compiled.grad, own.grad, atol=1e-5)
    assert list(model.state_dict()) == names


def test_restored_blocks_are_as_they_were(counter: CompileCounterWithBackend):
    model = MainModel(MAIN_PRESETS["tiny"])
    compile_regions(model)
    restore_regions(model)
    features(model)
    assert counter.frame_count == 0
