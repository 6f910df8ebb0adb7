"""The fused vision tower against the plain one, with the ops' references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rsd_fast.models.fused_vision import FusedVisionTower, can_fuse, fuse_vision, patch_columns
from rsd_fast.models.openvla import FEATURIZERS
from rsd_fast.models.vision import VisionConfig, VisionTower

DINO, SIGLIP = FEATURIZERS["vit_tiny_patch14_reg4_dinov2"], FEATURIZERS["vit_tiny_patch14_siglip"]
CONFIGS = {
    "fused": replace(DINO, fused=SIGLIP),
    "dino": DINO,
    "siglip": SIGLIP,
    "no statistics": replace(SIGLIP, mean=(), std=(), class_token=True),
}


def randomized(config: VisionConfig, dtype: torch.dtype = torch.float32) -> VisionTower:
    """Random everywhere, also where a new model has zeros and ones."""
    torch.manual_seed(0)
    tower = VisionTower(config)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    return tower.to(dtype).eval()


def pictures(config: VisionConfig, batch: int = 2, cameras: int = 2) -> torch.Tensor:
    size = (batch, cameras, config.image_size, config.image_size, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fused_tower_is_the_plain_one(name):
    tower = randomized(CONFIGS[name])
    images = pictures(tower.config)
    with torch.inference_mode():
        wanted, got = tower(images), FusedVisionTower(tower)(images)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_in_bf16_it_is_no_further_from_fp32_than_the_plain_one():
    config = CONFIGS["fused"]
    exact = randomized(config)(pictures(config))
    tower = randomized(config, torch.bfloat16)
    with torch.inference_mode():
        features = [run(pictures(config)).float() for run in (tower, FusedVisionTower(tower))]
    errors = [(each - exact).norm() / exact.norm() for each in features]
    assert errors[1] <= 1.1 * errors[0] < 0.03


def test_every_row_of_a_batch_is_as_alone():
    tower = randomized(CONFIGS["fused"])
    fused, images = FusedVisionTower(tower), pictures(tower.config, batch=3)
    with torch.inference_mode():
        together = fused(images)
        for b in range(3):
            torch.testing.assert_close(together[b : b + 1], fused(images[b : b + 1]), rtol=1e-4, atol=1e-4)


def test_it_keeps_the_towers_parameters_and_their_names():
    tower = randomized(CONFIGS["fused"])
    fused, images = FusedVisionTower(tower), pictures(tower.config)
    own, taken = dict(tower.named_parameters()), dict(fused.named_parameters())
    assert list(own) == list(taken) and all(taken[name] is own[name] for name in own)
    for block in tower.featurizer.blocks:
        block.mlp.fc1.weight.data.zero_()
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), tower(images), rtol=1e-4, atol=1e-4)


def test_a_change_of_dtype_lays_the_patch_embedding_out_again():
    tower = randomized(CONFIGS["fused"])
    fused = FusedVisionTower(tower).to(torch.bfloat16)
    with torch.inference_mode():
        got, wanted = fused(pictures(tower.config)), tower(pictures(tower.config))
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted.float()).norm() <= 0.03 * wanted.float().norm()


def test_with_gradients_it_is_the_plain_tower():
    tower = randomized(CONFIGS["fused"])
    features = FusedVisionTower(tower)(pictures(tower.config))
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_only_a_gpu_in_half_precision_gets_the_fused_tower():
    tower = randomized(CONFIGS["fused"], torch.bfloat16)
    assert fuse_vision(tower) is tower


def test_which_towers_fuse():
    assert can_fuse(CONFIGS["fused"]) and patch_columns(DINO) == 640
    nano = VisionConfig()
    assert not can_fuse(nano)
    with pytest.raises(ValueError, match="stem_widths"):
        FusedVisionTower(VisionTower(nano))
