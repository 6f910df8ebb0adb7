"""The vision kernels in Triton's interpreter against their references; run by test_vision_triton.py, in a process with
TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from rsd_fast.kernels.vision import add_layer_norm_, gelu_, normalized_patches

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}  # one unit in the last place, and a bit


def normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded_alike(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """At most one rounding apart."""
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    tolerance = ROUNDING[wanted.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 9, 48), (1, 261, 72), (2, 3, 1152)], ids=str)
@pytest.mark.parametrize("form", ["norm", "add", "scaled"])
def test_add_layer_norm(form, shape, dtype):
    width = shape[-1]
    weight, bias, scale = (normal(width, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    branch = None if form == "norm" else normal(*shape, dtype=dtype, seed=4)
    factors = scale if form == "scaled" else None
    results = []
    for backend in ("triton", "reference"):
        x = 3 * normal(*shape, dtype=dtype) + 1
        results.append((add_layer_norm_(x, branch, factors, weight, bias, 1e-6, backend=backend), x))
    (got, got_x), (wanted, wanted_x) = results
    assert_rounded_alike(got_x, wanted_x)
    if width > 1:  # the norm of a single number is its own rounding error
        # Sums that were rounded differently are normed differently.
        torch.testing.assert_close(got, wanted, rtol=4 * ROUNDING[dtype], atol=4 * ROUNDING[dtype])


def test_a_row_without_variance_gives_the_bias():
    x, weight, bias = torch.full((2, 24), 5.0), torch.ones(24), normal(24)
    got = add_layer_norm_(x, None, None, weight, bias, 1e-6, backend="triton")
    torch.testing.assert_close(got, bias.expand(2, -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 13), (2, 17, 63), (0, 5)], ids=str)
def test_gelu(shape, dtype):
    got, wanted = (4 * normal(*shape, dtype=dtype) for _ in range(2))
    gelu_(got, backend="triton")
    gelu_(wanted, backend="reference")
    assert_rounded_alike(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("patch", "grid", "columns"), [(14, (2, 3), 640), (14, (1, 1), 588), (4, (3, 2), 50)])
@pytest.mark.parametrize("featurizers", [1, 2])
def test_patches(featurizers, patch, grid, columns, dtype):
    size = (3, grid[0] * patch, grid[1] * patch, 3)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    gain, offset = normal(featurizers, 3, seed=6) / 255, normal(featurizers, 3, seed=7)
    arguments = (images, gain, offset, patch, columns, dtype)
    got, wanted = (normalized_patches(*arguments, backend=backend) for backend in ("triton", "reference"))
    assert_rounded_alike(got, wanted)
    assert (got[..., 3 * patch * patch :] == 0).all()
