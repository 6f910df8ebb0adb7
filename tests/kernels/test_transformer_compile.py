"""The kernels of a Llama layer compiled for A100 and H100/H200 on whatever machine this is, held to a budget."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from rsd_fast.kernels.transformer.compile_check import (
    CAPABILITIES,
    PREFIX,
    PRODUCTS,
    QUERIES,
    SHARED_LIMITS,
    attention_build,
    compile_build,
    product_build,
    row_builds,
    tiled_builds,
)
from rsd_fast.kernels.transformer.plans import AttentionTile, Tile
from rsd_fast.kernels.transformer.tuning import Attention, Product, stage_bytes

TILES = {
    "linear": Tile(64, 128, 64),
    "add": Tile(64, 128, 64, split=4, swap=True),
    "swiglu": Tile(64, 64, 64),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_without_tiles(capability):
    for build in row_builds():
        used = compile_build(build, capability)
        assert used.spills == 0 and used.registers <= 64, build.name


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("op", "outputs", "inputs"), PRODUCTS)
def test_products_do_not_spill(op, outputs, inputs, capability):
    product, tile = Product(op, QUERIES, outputs, inputs), TILES[op]
    used = compile_build(product_build(op, QUERIES, outputs, inputs, tile), capability)
    assert used.spills == 0 and used.shared <= SHARED_LIMITS[capability]
    assert used.shared >= stage_bytes(product, tile) * (tile.stages - 1)  # loads run ahead


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("kind", "tokens"), [("pass", 24), ("pass", QUERIES), ("prefill", PREFIX)])
def test_attention_does_not_spill(kind, tokens, capability):
    used = compile_build(attention_build(kind, tokens, AttentionTile.default(tokens)), capability)
    assert used.spills == 0 and used.shared <= SHARED_LIMITS[capability]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_package_s_tiles_do_not_spill(capability):
    for build in tiled_builds(capability):
        used = compile_build(build, capability)
        assert used.spills == 0 and used.shared <= SHARED_LIMITS[capability], build.name


def test_candidates_fit_into_shared_memory():
    for sizes in (("add", 24, 4096, 11008), ("swiglu", 64, 11008, 4096), ("linear", 640, 12288, 4096)):
        work = Product(*sizes)
        for shared in SHARED_LIMITS.values():
            choices = [choice for choice in work.candidates(shared) if isinstance(choice, Tile)]
            assert choices and all(stage_bytes(work, tile) * tile.stages < shared for tile in choices)
            assert "cublas" in work.candidates(shared)
    assert len(Attention("pass", 24, 545, 32, 128).candidates(SHARED_LIMITS[80])) > 8
