"""The image path of the published checkpoints, step by step, against independent computations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from rsd_fast.images import (
    PUBLISHED,
    ImageConfig,
    crop_center,
    jpeg_round_trip,
    lanczos3_matrix,
    prepare_image,
    resize_lanczos3,
    rotate180,
)


def scene(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Smooth shapes, edges and noise, as a camera gives them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([np.sin(7 * x + y), np.cos(5 * y), x * y], -1) * 100 + 128
    image[height // 4 : height // 2, width // 3 : width // 2] = (250, 10, 40)
    return torch.from_numpy((image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("source", "size"), [(256, 224), (128, 224), (224, 224), (480, 224), (65, 64)])
def test_lanczos_agrees_with_pillow_s_in_floating_point(source: int, size: int):
    image = scene(source, source)
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32), "F").resize((size, size), Image.Resampling.LANCZOS))
        for channel in np.moveaxis(image.numpy(), -1, 0)
    ]
    expected = np.stack(channels, -1).round().clip(0, 255)
    got = resize_lanczos3(image, size).numpy()
    different = np.abs(got.astype(int) - expected)
    assert different.max() <= 1 and (different > 0).mean() < 1e-3


def test_lanczos_resizes_sides_of_different_length():
    assert resize_lanczos3(scene(100, 60), 32).shape == (32, 32, 3)
    assert torch.allclose(lanczos3_matrix(100, 32).sum(1), torch.ones(32), atol=1e-6)


def crop_slowly(image: np.ndarray, share: float) -> np.ndarray:
    """TensorFlow's crop_and_resize, one pixel at a time."""
    pixels = image.astype(np.float32) / 255
    side, size = share**0.5, len(image)
    positions = [(1 - side) / 2 * (size - 1) + i * side * (size - 1) / (size - 1) for i in range(size)]
    result = np.zeros_like(image)
    for row, y in enumerate(positions):
        for column, x in enumerate(positions):
            top, bottom, left, right = int(np.floor(y)), int(np.ceil(y)), int(np.floor(x)), int(np.ceil(x))
            upper = pixels[top, left] + (pixels[top, right] - pixels[top, left]) * (x - left)
            lower = pixels[bottom, left] + (pixels[bottom, right] - pixels[bottom, left]) * (x - left)
            result[row, column] = (np.clip(upper + (lower - upper) * (y - top), 0, 1) * 255.5).clip(0, 255)
    return result


@pytest.mark.parametrize("share", [0.9, 0.5, 1.0])
def test_the_centre_crop_is_tensorflow_s(share: float):
    image = scene(40, 40)
    different = np.abs(crop_center(image, share).numpy().astype(int) - crop_slowly(image.numpy(), share))
    assert different.max() <= 1 and (different > 0).mean() < 1e-3


def test_a_crop_keeps_the_centre_and_drops_the_border():
    image = torch.zeros(41, 41, 3, dtype=torch.uint8)
    image[20, 20] = 200
    image[0], image[-1] = 255, 255
    cropped = crop_center(image, 0.9)
    assert (cropped[20, 20] == 200).all() and cropped[0].max() == 0


def test_jpeg_is_quality_95_with_halved_colours():
    image = scene()
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "JPEG", quality=95, subsampling=2)
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(jpeg_round_trip(image).numpy(), expected)
    assert 0 < np.abs(expected.astype(int) - image.numpy()).mean() < 8


def test_libero_s_images_turn_upright():
    image = scene(8, 6)
    assert torch.equal(rotate180(image), torch.from_numpy(image.numpy()[::-1, ::-1].copy()))


def test_the_published_path_is_its_steps_in_order():
    image = scene(256, 256)
    expected = crop_center(resize_lanczos3(jpeg_round_trip(image), 224), 0.9)
    assert torch.equal(prepare_image(image, 224, PUBLISHED), expected)
    assert prepare_image(image, 224, PUBLISHED).dtype == torch.uint8


@given(shade=st.integers(0, 255))
def test_a_flat_image_stays_flat(shade: int):
    image = torch.full((50, 50, 3), shade, dtype=torch.uint8)
    result = prepare_image(image, 32, ImageConfig(filter="lanczos3", crop=0.9))
    assert result.shape == (32, 32, 3) and (result.int() - shade).abs().max() <= 1


def test_by_default_an_image_of_the_right_size_is_left_alone():
    image = scene(32, 32)
    assert torch.equal(prepare_image(image, 32, ImageConfig()), image)
    assert prepare_image(scene(50, 70), 32, ImageConfig()).shape == (32, 32, 3)


def test_impossible_settings_list_the_possible_ones():
    with pytest.raises(ValueError, match=r"got image filter 'nearest', expected 'bilinear' or 'lanczos3'"):
        ImageConfig(filter="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got crop 0.0, expected a share"):
        ImageConfig(crop=0.0)
