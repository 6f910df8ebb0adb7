"""Compiles the vision kernels for A100 and H100/H200; part of `python -m rsd_fast.kernels.compile_check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton

from ..compile_check import CAPABILITIES, SHARED_LIMIT, Resources, compile_kernel
from .triton import GELU_BLOCK, GELU_WARPS, add_layer_norm_kernel, gelu_kernel, norm_warps, patches_kernel


@dataclass(frozen=True)
class Build:
    """One kernel at one shape."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int


def builds(dtype: str = "bf16") -> list[Build]:
    """What the openvla-7b tower launches."""
    pointer = f"*{dtype}"
    found = [
        Build(
            "patches 14, 640 columns, 2 featurisers",
            patches_kernel,
            {"images": "*u8", "gain": "*fp32", "offset": "*fp32", "out": pointer, "rows": "i32"},
            {"GRID_Y": 16, "GRID_X": 16, "PATCH": 14, "COLUMNS": 640, "FEATURIZERS": 2, "BLOCK": 1024},
            4,
        ),
        Build("gelu", gelu_kernel, {"x": pointer, "count": "i32"}, {"BLOCK": GELU_BLOCK}, GELU_WARPS),
    ]
    for width in (1024, 1152):
        for form in ("norm", "add", "scaled"):
            present = ("x", "weight", "bias", "out", *{"norm": (), "add": ("branch",)}.get(form, ("branch", "scale")))
            constants: dict[str, Any] = {"WIDTH": width, "BLOCK": triton.next_power_of_2(width)}
            constants |= {name: None for name in ("branch", "scale") if name not in present}
            types = {name: pointer for name in present} | {"eps": "fp32"}
            found.append(
                Build(f"add_layer_norm {width} {form}", add_layer_norm_kernel, types, constants, norm_warps(width))
            )
    return found


def compile_build(build: Build, capability: int) -> Resources:
    """Registers, spills and shared memory of one build."""
    return compile_kernel(build.kernel, build.types, build.constants, capability, build.warps)


def report() -> list[str]:
    """Prints a row for every kernel and architecture; returns those over the budget."""
    over = []
    for build in builds():
        for capability in CAPABILITIES:
            used = compile_build(build, capability)
            row = (
                f"{build.name:45} sm_{capability:<3} {used.warps:5} {used.registers:5} {used.spills:6} {used.shared:7} "
                f"{used.instructions:6} {used.largest_loop:5}"
            )
            print(row, flush=True)
            if used.spills or used.shared > SHARED_LIMIT:
                over.append(row)
    return over
