"""The vision tower: what a patch token stands for, and which images it depends on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rsd_fast.models.vision import VisionConfig, VisionTower

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
CONFIGS = {"plain": VisionConfig(**TINY, stem_widths=()), "stem": VisionConfig(**TINY, stem_widths=(8, 16))}


@pytest.fixture(params=CONFIGS)
def tower(request: pytest.FixtureRequest) -> VisionTower:
    torch.manual_seed(0)
    return VisionTower(CONFIGS[request.param]).eval()


def images(batch: int = 2, cameras: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, cameras, 32, 32, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_cameras_come_one_after_the_other_and_do_not_see_each_other(tower: VisionTower):
    pictures = images()
    features = tower(pictures)
    assert features.shape == (2, 2 * 16, 32) and tower.config.patches == 16
    swapped = tower(pictures.flip(1))
    assert torch.allclose(swapped[:, :16], features[:, 16:], atol=1e-5)
    alone = tower(pictures[:1, :1])
    assert torch.allclose(alone[0], features[0, :16], atol=1e-5)


@torch.no_grad()
def test_patches_are_row_major(tower: VisionTower):
    """Before the blocks mix them, the token of a patch is the only one that a change inside it moves."""
    black = torch.zeros(1, 3, 32, 32)
    marked = black.clone()
    marked[:, :, 8 + 4, 16 + 4] = 1.0  # second row, third column, in its middle
    embed = tower.featurizer.patch_embed
    change = (embed(marked) - embed(black)).abs().amax(-1)[0]
    assert change.argmax() == 4 + 2
    if not tower.config.stem_widths:
        assert (change > 0).sum() == 1


@torch.no_grad()
def test_pixels_are_scaled_to_minus_one_and_one(tower: VisionTower):
    for value, scaled in ((0, -1.0), (255, 1.0)):
        pictures = torch.full((1, 1, 32, 32, 3), value, dtype=torch.uint8)
        direct = tower.featurizer(torch.full((1, 32, 32, 3), scaled).permute(0, 3, 1, 2))
        assert torch.equal(tower(pictures), direct)


@torch.no_grad()
def test_the_channels_are_not_interchangeable(tower: VisionTower):
    pictures = images()
    assert not torch.allclose(tower(pictures), tower(pictures.flip(-1)), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 8"),
        ({"heads": 3}, "width 32 is not a multiple of heads 3"),
        ({"stem_widths": (8, 16, 24)}, "got 3 stem widths for patch_size 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**TINY | {"stem_widths": ()} | change)
