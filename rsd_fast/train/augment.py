"""Augmentation on the device, one draw a sample and camera."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.normalize import QuantileNormalizer
from rsd_fast.train.config import AugmentOptions


def augment(
    inputs: PolicyInputs, normalizer: QuantileNormalizer, options: AugmentOptions, generator: torch.Generator
) -> PolicyInputs:
    """The same batch, seen a little differently."""
    images = inputs.images
    if options.shift:
        images = random_shift(images, options.shift, generator)
    if options.jitter:
        images = random_colour(images, options.jitter, generator)
    proprio = blur_proprio(inputs.proprio, normalizer, options, generator)
    return replace(inputs, images=images, proprio=proprio)


def random_shift(
    images: UInt8[Tensor, "B C H W 3"], pixels: int, generator: torch.Generator
) -> UInt8[Tensor, "B C H W 3"]:
    """Moves each image by up to `pixels` both ways; the border repeats (DrQ: Kostrikov et al., 2020)."""
    batch, cameras, height, width, _ = images.shape
    device = images.device
    offset = torch.randint(-pixels, pixels + 1, (2, batch, cameras, 1), device=device, generator=generator)
    rows = (torch.arange(height, device=device) + offset[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + offset[1]).clamp(0, width - 1)
    sample = torch.arange(batch, device=device)[:, None, None, None]
    camera = torch.arange(cameras, device=device)[None, :, None, None]
    return images[sample, camera, rows[..., :, None], columns[..., None, :]]


def random_colour(
    images: UInt8[Tensor, "B C H W 3"], strength: float, generator: torch.Generator
) -> UInt8[Tensor, "B C H W 3"]:
    """Random contrast about the mean, brightness, and gain of each colour channel (half as strong)."""

    def draw(channels: int, scale: float) -> Float[Tensor, "B C 1 1 channels"]:
        shape = (*images.shape[:2], 1, 1, channels)
        return scale * (2 * torch.rand(shape, device=images.device, generator=generator) - 1)

    pixels = images.float()
    mean = pixels.mean((2, 3, 4), keepdim=True)
    pixels = (pixels - mean) * (1 + draw(1, strength)) + mean + 127.5 * draw(1, strength)
    pixels = pixels * (1 + draw(3, strength / 2))
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def blur_proprio(
    proprio: Float[Tensor, "B 8"], normalizer: QuantileNormalizer, options: AugmentOptions, generator: torch.Generator
) -> Float[Tensor, "B 8"]:
    """Noise in normalised units; and for some samples the centre of the range instead, which says nothing."""
    noise = torch.randn(proprio.shape, device=proprio.device, generator=generator)
    dropped = torch.rand(len(proprio), 1, device=proprio.device, generator=generator) < options.proprio_dropout
    return torch.where(dropped, normalizer.offset, proprio + options.proprio_noise * noise * normalizer.gain)
