"""The kernels of a Llama layer compiled for A100 and H100/H200: registers, spills and shared memory of every tile.

`python -m rsd_fast.kernels.transformer.compile_check` prints a table of the tiles in use and fails where one spills or
asks for more shared memory than its architecture has. Neither a GPU nor a driver is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..compile_check import CAPABILITIES, Resources, read_resources
from . import triton_attention, triton_linear, triton_rows
from .plans import TABLES, AttentionTile, Tile, read_table

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
WIDTH, MLP, HEADS, HEAD_DIM = 4096, 11008, 32, 128  # Llama-2-7B
PREFIX, QUERIES = 608, 64
PRODUCTS = (("linear", 3 * WIDTH, WIDTH), ("add", WIDTH, WIDTH), ("swiglu", MLP, WIDTH), ("add", WIDTH, MLP))


@dataclass(frozen=True)
class Build:
    """One kernel as it is launched somewhere."""

    name: str
    kernel: triton.JITFunction
    types: dict[str, str]
    constants: Mapping[str, object]


def product_build(op: str, rows: int, outputs: int, inputs: int, tile: Tile) -> Build:
    """A product in bfloat16."""
    fixed = triton_linear.constants(rows, outputs, inputs, tile, op == "swiglu")
    out = "*bf16" if tile.split == 1 else "*fp32"
    types = {"x": "*bf16", "weight": "*bf16", "out": out, "rows": "i32", "stride_x": "i32", "ahead": "i32"}
    return Build(f"{op} {outputs}x{inputs}, {rows} rows", triton_linear.linear_kernel, types, fixed)


def attention_build(kind: str, tokens: int, tile: AttentionTile, causal: bool = False) -> Build:
    """Attention in bfloat16; of a pass, or of a prefill."""
    fixed: dict[str, object] = dict(triton_attention.constants(HEADS, HEAD_DIM, tile, causal))
    types = {name: "*bf16" for name in ("qkv", "keys", "values")} | {"cos": "*fp32", "sin": "*fp32"}
    types |= {"key_mask": "*i32", "out": "*bf16" if tile.split == 1 else "*fp32", "tokens": "i32", "cached": "i32"}
    types |= {name: "i32" for name in ("stride_b", "stride_n", "stride_kb", "stride_kh", "stride_out")}
    optional = {"new_mask": "*u8" if kind == "pass" else None, "stats": "*fp32" if tile.split > 1 else None}
    types |= {name: kind for name, kind in optional.items() if kind}
    fixed |= {name: None for name, kind in optional.items() if not kind}
    name = f"{kind} attention {HEADS}x{HEAD_DIM}, {tokens} tokens"
    return Build(name, triton_attention.attention_kernel, types, fixed)


def row_builds() -> Iterator[Build]:
    """The kernels that have no tiles to choose."""
    floats = {"weight": "*bf16", "x": "*bf16", "summed": "*bf16", "normed": "*bf16", "rows": "i32", "eps": "fp32"}
    for parts in (0, 1, 4, 8):
        kind = {"delta": "*bf16" if parts == 1 else "*fp32"} if parts else {}
        fixed = {"WIDTH": WIDTH, "PARTS": parts, "BLOCK": WIDTH, "num_warps": 8} | ({} if parts else {"delta": None})
        yield Build(f"rms_norm, {parts} parts", triton_rows.rms_norm_kernel, floats | kind, fixed)
    pointers = {"gate_up": "*bf16", "out": "*bf16"}
    yield Build("swiglu", triton_rows.swiglu_kernel, pointers, {"MLP": MLP, "BLOCK": 1024, "num_warps": 4})
    types = {name: "*bf16" for name in ("qkv", "keys", "values")} | {"cos": "*fp32", "sin": "*fp32", "tokens": "i32"}
    types |= {name: "i32" for name in ("stride_b", "stride_n", "stride_kb", "stride_kh")}
    fixed = {"HEADS": HEADS, "HALF": HEAD_DIM // 2, "TOKENS": triton_rows.ROPE_TOKENS, "num_warps": 4}
    yield Build("rotary_cache", triton_rows.rotary_cache_kernel, types, fixed)
    for layers, dims, levels in ((3, 7, 5), (8, 16, 7)):
        rows = triton_rows.code_rows(layers, dims)
        types = {"codes": "*i32", "table": "*bf16", "base": "*bf16", "out": "*bf16"}
        fixed = {"L": layers, "T": 8, "D": dims, "LEVELS": levels, "WIDTH": WIDTH, "ROWS": rows, "num_warps": 4}
        fixed["BLOCK"] = triton_rows.CODE_NUMBERS // rows
        yield Build(f"code_queries, {layers} layers", triton_rows.code_queries_kernel, types, fixed)
    types = {"parts": "*fp32", "stats": "*fp32", "out": "*bf16", "rows": "i32", "tokens": "i32", "stride_out": "i32"}
    fixed = {"HEADS": HEADS, "D": HEAD_DIM, "SPLIT": 4, "BLOCK": triton_attention.COMBINE_WIDTH, "num_warps": 4}
    yield Build("combine", triton_attention.combine_kernel, types, fixed)


def tiled_builds(capability: int) -> Iterator[Build]:
    """Products and attention of a 7 B model as the package's table of an architecture has them."""
    path = TABLES / f"sm_{capability}.json"
    table = read_table(path) if path.is_file() else {}
    for op, outputs, inputs in PRODUCTS:
        for rows, choice in table.get(f"{op} {outputs}x{inputs}", {}).items():
            if not isinstance(choice, str):
                yield product_build(op, int(rows), outputs, inputs, Tile(**choice))
    for kind, sizes in (("pass", (24, QUERIES)), ("prefill", (PREFIX,))):
        entries = table.get(f"{kind} attention {HEADS}x{HEAD_DIM}", {})
        tiles = {int(tokens): AttentionTile(**choice) for tokens, choice in entries.items()}
        for tokens, tile in (tiles or {size: AttentionTile.default(size) for size in sizes}).items():
            yield attention_build(kind, tokens, tile)


def compile_build(build: Build, capability: int) -> Resources:
    """Compiles a kernel as a launch would: pointers are aligned to 16 bytes, and strides are multiples of 16.

    Raises:
        RuntimeError: Triton's interpreter is on (TRITON_INTERPRET=1), which leaves nothing to compile.
    """
    if not isinstance(build.kernel, triton.JITFunction):
        raise RuntimeError("got TRITON_INTERPRET=1, expected it unset: interpreted kernels are not compiled")
    fixed = dict(build.constants)
    options = {name: fixed.pop(name) for name in ("num_warps", "num_stages") if name in fixed}
    signature = {name: build.types.get(name, "constexpr") for name in build.kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(build.kernel.arg_names)
        if signature[name].startswith("*") or "stride" in name
    }
    source = ASTSource(build.kernel, signature, fixed, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return read_resources(compiled.asm["cubin"], compiled.metadata.shared, int(str(options["num_warps"])))


def report() -> list[str]:
    """Prints a row a kernel and architecture; returns what is over the budget."""
    over = []
    print(f"{'kernel':44} {'arch':6} {'warps':>5} {'regs':>5} {'spills':>6} {'shared':>7}")
    for capability in CAPABILITIES:
        for build in (*row_builds(), *tiled_builds(capability)):
            used = compile_build(build, capability)
            numbers = f"{used.warps:5} {used.registers:5} {used.spills:6} {used.shared:7}"
            row = f"{build.name:44} sm_{capability:<3} {numbers}"
            print(row, flush=True)
            if used.shared > SHARED_LIMITS[capability] or used.spills:
                over.append(row)
    return over


if __name__ == "__main__":
    sys.exit("\n".join(["over the budget:", *rows]) if (rows := report()) else 0)
