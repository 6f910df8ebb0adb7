"""The vision kernels in Triton's interpreter (a process of their own: `interpreted_vision.py`), and the ops' checks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rsd_fast.kernels.vision import add_layer_norm_, gelu_, normalized_patches
from tests.kernels.interpreter import assert_passes_interpreted


def test_the_interpreted_kernels_are_the_references():
    assert_passes_interpreted(Path(__file__).with_name("interpreted_vision.py"), least=70)


def test_patches_refuses_what_does_not_fit():
    images, table = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 3)
    with pytest.raises(TypeError, match="uint8"):
        normalized_patches(images.float(), table, table, 4, 48, torch.float32)
    with pytest.raises(ValueError, match="patches of 5"):
        normalized_patches(images, table, table, 5, 75, torch.float32)
    with pytest.raises(ValueError, match="47 columns"):
        normalized_patches(images, table, table, 4, 47, torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        normalized_patches(images.transpose(1, 2), table, table, 4, 48, torch.float32)
    with pytest.raises(ValueError, match="offset"):
        normalized_patches(images, table, torch.zeros(2, 3), 4, 48, torch.float32)


def test_norm_and_gelu_refuse_what_does_not_fit():
    x, vector = torch.zeros(2, 6), torch.ones(6)
    with pytest.raises(ValueError, match="branch"):
        add_layer_norm_(x, torch.zeros(2, 5), None, vector, vector, 1e-6)
    with pytest.raises(ValueError, match="scale"):
        add_layer_norm_(x, x.clone(), torch.ones(2), vector, vector, 1e-6)
    with pytest.raises(TypeError, match="float64"):
        add_layer_norm_(x.double(), None, None, vector, vector, 1e-6)
    with pytest.raises(ValueError, match="contiguous"):
        gelu_(x.t())
