"""From a camera's bytes to the bytes a model was trained on.

The published OpenVLA-OFT checkpoints saw images that went through TensorFlow: JPEG, a Lanczos resize, a centre crop.
Those steps are written out here with TensorFlow's conventions, so that nobody needs it. Each resize is two small
matrices, one an axis, and runs on any device; only the JPEG round trip is bound to the CPU.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

JPEG_QUALITY = 95  # TensorFlow's default


@dataclass(frozen=True)
class ImageConfig:
    """What is done to an upright image before a model sees it, in this order.

    Attributes:
        jpeg: encode and decode as JPEG (quality 95, 4:2:0), as the training data was stored.
        filter: of the resize to the model's size, antialiased: `bilinear`, or `lanczos3` rounded as TensorFlow does.
        crop: share of the area that a centre crop keeps before it is stretched back; 1 for none. 0.9 where a model was
            trained on random crops.
    """

    jpeg: bool = False
    filter: Literal["bilinear", "lanczos3"] = "bilinear"
    crop: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError on a filter that does not exist or a crop that leaves nothing."""
        if self.filter not in ("bilinear", "lanczos3"):
            raise ValueError(f"got image filter {self.filter!r}, expected 'bilinear' or 'lanczos3'")
        if not 0.0 < self.crop <= 1.0:
            raise ValueError(f"got crop {self.crop}, expected a share of the area in (0, 1]")


# The published checkpoints, with and without the crop.
PUBLISHED = ImageConfig(jpeg=True, filter="lanczos3", crop=0.9)
PUBLISHED_UNCROPPED = ImageConfig(jpeg=True, filter="lanczos3")


def prepare_image(image: UInt8[Tensor, "H W 3"], size: int, config: ImageConfig) -> UInt8[Tensor, "size size 3"]:
    """An upright image of any size -> what the model takes.

    Args:
        image: upright; LIBERO's own come with their rows bottom up, see `rotate180`.
        size: pixels a side.
        config: the steps.

    Raises:
        ImportError: JPEG is asked for and Pillow is missing.
    """
    if config.jpeg:
        image = jpeg_round_trip(image)
    if image.shape[:2] != (size, size):
        image = resize(image, size) if config.filter == "bilinear" else resize_lanczos3(image, size)
    return image if config.crop == 1.0 else crop_center(image, config.crop)


def rotate180(image: UInt8[Tensor, "H W 3"]) -> UInt8[Tensor, "H W 3"]:
    """LIBERO's raw camera images -> as OpenVLA's data show them: upright, and mirrored."""
    return image.flip(0, 1)


def jpeg_round_trip(image: UInt8[Tensor, "H W 3"], quality: int = JPEG_QUALITY) -> UInt8[Tensor, "H W 3"]:
    """Encodes and decodes, on the CPU.

    Pillow and TensorFlow use the same library with the same settings; other builds of it differ by a level here and
    there.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("this model's images go through JPEG, which needs Pillow: pip install pillow") from error
    buffer = io.BytesIO()
    pixels = image.cpu().contiguous().numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer) as decoded:
        return torch.from_numpy(np.array(decoded.convert("RGB"))).to(image.device)


def resize(image: UInt8[Tensor, "H W 3"], size: int) -> UInt8[Tensor, "size size 3"]:
    """Bilinear with antialiasing, rounded back to uint8."""
    pixels = image.permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def resize_lanczos3(image: UInt8[Tensor, "H W 3"], size: int) -> UInt8[Tensor, "size size 3"]:
    """`tf.image.resize(image, (size, size), "lanczos3", antialias=True)`, rounded (half to even) and clipped."""
    rows, columns = (lanczos3_matrix(inputs, size, image.device) for inputs in image.shape[:2])
    return _apply(image.float(), rows, columns).round().clamp(0, 255).to(torch.uint8)


def crop_center(image: UInt8[Tensor, "H W 3"], share: float) -> UInt8[Tensor, "H W 3"]:
    """Keeps `share` of the area around the centre and stretches it back, bilinear without antialiasing.

    `tf.image.crop_and_resize` between `convert_image_dtype` to float and back: the way back truncates `255.5 x`.
    """
    rows, columns = (crop_matrix(pixels, share, image.device) for pixels in image.shape[:2])
    cropped = _apply(image.float() / 255, rows, columns).clamp(0, 1)
    return (cropped * 255.5).clamp(0, 255).to(torch.uint8)


def _apply(
    image: Float[Tensor, "H W 3"], rows: Float[Tensor, "h H"], columns: Float[Tensor, "w W"]
) -> Float[Tensor, "h w 3"]:
    return torch.einsum("hH,HWc,wW->hwc", rows, image, columns)


@lru_cache(maxsize=16)
def lanczos3_matrix(
    inputs: int, outputs: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "outputs inputs"]:
    """Weights of an antialiased Lanczos-3 resize along one axis; rows sum to one. Made once a size and device."""
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    centers = (torch.arange(outputs, dtype=torch.float64) + 0.5) * scale
    offsets = torch.arange(inputs, dtype=torch.float64) + 0.5 - centers[:, None]
    x = offsets / stretch
    weights = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


@lru_cache(maxsize=16)
def crop_matrix(
    pixels: int, share: float, device: torch.device | str = "cpu"
) -> Float[Tensor, "pixels pixels"]:
    """Weights of a centre crop along one axis, stretched back with its edges on the image's. Made once, as above."""
    side = share**0.5
    positions = ((1 - side) / 2 + torch.linspace(0, 1, pixels, dtype=torch.float64) * side) * (pixels - 1)
    low = positions.floor().clamp(0, pixels - 1).long()
    high = positions.ceil().clamp(0, pixels - 1).long()
    weights = torch.zeros(pixels, pixels, dtype=torch.float64)
    fraction = positions - low
    row = torch.arange(pixels)
    weights.index_put_((row, low), 1 - fraction, accumulate=True)
    weights.index_put_((row, high), fraction, accumulate=True)
    return weights.float().to(device)
