"""Run by `test_transformer_triton.py` in a process with TRITON_INTERPRET=1; not collected by its name."""

from __future__ import annotations

import os

import pytest
import torch

from rsd_fast.kernels.transformer import (
    AttentionTile,
    Tile,
    attention,
    code_queries,
    linear,
    pack_mask,
    rms_norm,
    rotary_cache_,
    swiglu,
    swiglu_linear,
)
from rsd_fast.kernels.transformer.reference import (
    attention_reference,
    code_queries_reference,
    linear_reference,
    pack_mask_reference,
    rms_norm_reference,
    rotary_cache_reference_,
    swiglu_linear_reference,
    swiglu_reference,
    unpacked_mask,
)
from tests.kernels import transformer_cases
from tests.kernels.transformer_cases import TILES, assert_near, attention_case, code_case, normal

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/kernels/test_transformer_triton.py"
pytestmark = [pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")]

DTYPES = (torch.float32, torch.float16)  # products of bfloat16 are beyond the interpreter
TRITON = {"backend": "triton"}


@pytest.fixture(autouse=True)
def cut(monkeypatch) -> None:
    """The interpreter cuts a float32 to bfloat16; a GPU rounds it."""
    monkeypatch.setitem(transformer_cases.ROUNDING, torch.bfloat16, 2**-7)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
@pytest.mark.parametrize("parts", [None, 0, 1, 3])
@pytest.mark.parametrize("shape", [(3, 48), (2, 1, 100), (1, 1024)])
def test_rms_norm(shape, parts, dtype, generator):
    x, weight = normal(generator, *shape, dtype=dtype), normal(generator, shape[-1], dtype=dtype)
    delta = None
    if parts is not None:
        kind = torch.float32 if parts else dtype
        delta = normal(generator, *((parts,) if parts else ()), *shape, dtype=kind)
    summed, normed = rms_norm(x, weight, 1e-5, delta, **TRITON)
    wanted, _ = rms_norm_reference(x.float(), weight.float(), 1e-5, delta)
    assert_near(summed, wanted, dtype)
    _, wanted = rms_norm_reference(summed.float(), weight.float(), 1e-5)
    assert_near(normed, wanted, dtype, shape[-1])
    assert (summed is x) == (delta is None)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", [(3, 34), (2, 2, 4000)])
def test_swiglu(shape, dtype, generator):
    gate_up = normal(generator, *shape, dtype=dtype, scale=4)
    assert_near(swiglu(gate_up, **TRITON), swiglu_reference(gate_up.float()), dtype)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("tokens", "head_dim"), [(11, 32), (1, 64), (8, 128)])
def test_rotary_cache(tokens, head_dim, dtype):
    case = attention_case(0, tokens=tokens, head_dim=head_dim, dtype=dtype)
    results = []
    for run in (rotary_cache_reference_, lambda *a: rotary_cache_(*a, **TRITON)):
        cache = torch.full((2, 2, 2, tokens + 3, head_dim), torch.nan, dtype=dtype)
        run(case.qkv, case.cos, case.sin, *(side[:, :, :tokens] for side in cache))
        assert torch.isnan(cache[..., tokens:, :]).all()
        results.append(cache[..., :tokens, :])
    assert_near(results[1], results[0].float(), dtype)
    assert torch.equal(results[1][1], results[0][1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(8, 64, 128), (17, 40, 200), (70, 130, 48), (1, 16, 16)])
def test_linear(rows, columns, inner, tile, dtype, generator):
    x, weight = normal(generator, rows, inner, dtype=dtype), normal(generator, columns, inner, dtype=dtype)
    got = linear(x, weight, tile, **TRITON)
    if tile.split > 1:
        assert got.dtype == torch.float32 and len(got) == tile.split
        got = got.sum(0).to(dtype)
    assert_near(got, linear_reference(x.float(), weight.float()), dtype, inner)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", [Tile(16, 32, 32), Tile(32, 16, 64, swap=True)], ids=str)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(8, 64, 128), (17, 40, 200)])
def test_swiglu_linear(rows, columns, inner, tile, dtype, generator):
    x = normal(generator, rows, inner, dtype=dtype)
    weight = normal(generator, 2 * columns, inner, dtype=dtype, scale=inner**-0.5)
    wanted = swiglu_linear_reference(x.float(), weight.float())
    assert_near(swiglu_linear(x, weight, tile, **TRITON), wanted, dtype, inner)


def test_a_gate_cannot_be_split(generator):
    x, weight = normal(generator, 4, 32, dtype=torch.float32), normal(generator, 32, 32, dtype=torch.float32)
    with pytest.raises(ValueError, match="got split 2, expected 1"):
        swiglu_linear(x, weight, Tile(16, 16, 16, split=2), **TRITON)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("tokens", "cached"), [(5, 19), (24, 133), (33, 64), (1, 1)])
def test_a_pass(tokens, cached, masked, split, dtype):
    case = attention_case(1, tokens=tokens, cached=cached, masked=masked, dtype=dtype)
    tile = AttentionTile(16, 32, split=split)
    wanted = attention_reference(*case.float().arguments())
    assert_attends(attention(*case.arguments(), tile=tile, **TRITON), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("tokens", "head_dim"), [(19, 64), (48, 32)])
def test_a_prefill(tokens, head_dim, causal, split, dtype):
    case = attention_case(2, tokens=tokens, cached=tokens, head_dim=head_dim, new=False, causal=causal, dtype=dtype)
    tile = AttentionTile(32, 32, split=split)
    wanted = attention_reference(*case.float().arguments())
    assert_attends(attention(*case.arguments(), tile=tile, **TRITON), wanted, dtype)


@pytest.mark.parametrize("keys", [1, 31, 32, 130, 545])
def test_packed_masks(keys, generator):
    mask = torch.rand(3, keys, generator=generator) < 0.5
    packed = pack_mask(mask, **TRITON)
    assert torch.equal(packed, pack_mask_reference(mask))
    assert torch.equal(unpacked_mask(packed, keys), mask)


def test_a_cache_with_room_a_slice_of_tokens_and_a_place_for_the_result():
    case = attention_case(3, tokens=12, cached=21)
    wanted = attention(*case.arguments(), **TRITON)
    keys, values = (torch.full((2, 2, 30, 32), torch.nan) for _ in range(2))
    keys[:, :, :21], values[:, :, :21] = case.keys, case.values
    qkv = torch.full((2, 20, 3 * 64), torch.nan)
    qkv[:, 5:17] = case.qkv
    for tile in (AttentionTile(32, 64), AttentionTile(32, 64, split=2)):
        out = torch.full((2, 20, 64), 7.0)
        got = attention(
            qkv[:, 5:17],
            case.cos,
            case.sin,
            keys[:, :, :21],
            values[:, :, :21],
            case.key_mask,
            case.new_mask,
            tile=tile,
            out=out[:, 5:17],
            **TRITON,
        )
        assert got.data_ptr() == out[:, 5:17].data_ptr()
        assert torch.allclose(got, wanted, atol=1e-6)
        assert (out[:, :5] == 7).all() and (out[:, 17:] == 7).all()


@pytest.mark.parametrize("split", [1, 2])
def test_a_token_that_sees_nothing_gets_zeros(split):
    case = attention_case(4, tokens=4, cached=20)
    case.key_mask[0] = False
    case.new_mask[1] = False
    got = attention(*case.arguments(), tile=AttentionTile(16, 32, split=split), **TRITON)
    assert torch.equal(got[0, 1], torch.zeros(64))
    assert_attends(got, attention_reference(*case.arguments()), torch.float32)


def assert_attends(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Weights are rounded to `dtype` before they meet the values, and so are turned queries and keys."""
    error = (got.float() - wanted).abs().max()
    assert got.shape == wanted.shape and torch.isfinite(got).all()
    assert error <= {torch.float32: 3e-6, torch.float16: 6e-3}[dtype], error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [(2, 3, 4, 7, 5, 48), (1, 8, 2, 16, 7, 100), (3, 1, 2, 3, 5, 16), (1, 2, 1, 1, 2, 32)], ids=str
)
def test_code_queries(sizes, dtype, generator):
    case = code_case(sizes, dtype, generator)
    got = code_queries(*case, **TRITON)
    assert_near(got, code_queries_reference(case[0], case[1].float(), case[2].float(), case[3]), dtype, 200)
    changed = case[0].clone()
    changed[:, -1] = (changed[:, -1] + 1) % sizes[4]
    assert torch.equal(code_queries(changed, *case[1:], **TRITON), got)  # nothing depends on the last layer
