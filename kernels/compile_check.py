"""Compiles the Triton kernels for A100 and H100/H200 on any machine, and reads what they need from the cubin.

`python -m rsd_fast.kernels.compile_check` prints a table and fails where the shipped shapes spill or a kernel
asks for more shared memory than an A100 has. It needs neither a GPU nor a driver: Triton brings the assembler
and `cuobjdump` along.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .accept.state import AcceptParams, Redraft
from .accept.triton import accept_kernel
from .accept.triton_launch import Launch, constants, largest_pack, launch_choice

CAPABILITIES = (80, 90)
SHARED_LIMIT = 163 * 1024  # bytes a block may have on an A100 (sm_80); an H100 has more
BATCHES = (1, 4096, 65536)  # a launch for latency, and two for throughput
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of other ops; each has a `report` of its own.
MORE_CHECKS = ("rsd_fast.kernels.transformer.compile_check", "rsd_fast.kernels.vision.compile_check")
INTEGERS = ("codes", "frontier", "drafted", "finished", "passes", "agreed", "kept", "slack")
FLOATS = ("latents", "codebook", "gain", "offset", "actions")
WEIGHTS = ("w1", "b1", "w2", "b2")


@dataclass(frozen=True)
class Shape:
    """What a codec makes of the kernel.

    `hidden` 0 is no action decoder but the un-normalisation. `redraft` is the engine's with such a code; the middle
    needs most.
    """

    layers: int
    steps: int
    dims: int
    levels: int
    hidden: int
    action_dims: int
    redraft: Redraft = "middle"


SHIPPED = (Shape(3, 8, 7, 5, 0, 7), Shape(8, 8, 16, 7, 64, 7, redraft="main"))
EXTREME = Shape(16, 64, 32, 32, 64, 7)
FORMS = {  # of `AcceptParams`: granularity, rule, expected, temperature
    "element": ("element", "distance", False, 0.0),
    "element expected": ("element", "distance", True, 0.0),
    "element typical expected": ("element", "typical", True, 0.0),
    "layer": ("layer", "distance", False, 0.0),
    "layer typical expected": ("layer", "typical", True, 0.0),
    "all": ("all", "distance", False, 0.0),
    "all expected": ("all", "distance", True, 0.0),
    "sampled": ("layer", "distance", False, 1.0),
}


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel: registers a thread, spills (instructions on local memory), shared bytes a block.

    `instructions` are those of the whole program text; a warp runs each about once, but those of loops.
    """

    registers: int
    spills: int
    shared: int
    warps: int
    instructions: int
    largest_loop: int


def launch_of(shape: Shape, form: str, dtype: str, batch: int) -> Launch:
    """What a call with contiguous logits launches."""
    sizes = (batch, shape.layers, shape.steps, shape.dims, shape.levels)
    logits = torch.empty(sizes, dtype=DTYPES[dtype], device="meta")
    return launch_choice(batch, sizes[1:], 1 if form == "sampled" else largest_pack(logits))


def compile_accept(
    shape: Shape, form: str, capability: int, dtype: str = "bf16", launch: Launch | None = None
) -> Resources:
    """Compiles the accept kernel as a launch with contiguous logits of `dtype` would.

    Args:
        shape: one of a codec's.
        form: a key of `FORMS`.
        capability: 80 or 90.
        dtype: `bf16`, `fp16` or `fp32`.
        launch: None: the one for the smallest batch.

    Raises:
        RuntimeError: Triton's interpreter is on (TRITON_INTERPRET=1), which leaves nothing to compile.
    """
    if not isinstance(accept_kernel, triton.JITFunction):
        raise RuntimeError("got TRITON_INTERPRET=1, expected it unset: interpreted kernels are not compiled")
    granularity, rule, expected, temperature = FORMS[form]
    launch = launch or launch_of(shape, form, dtype, BATCHES[0])
    elements = shape.steps * shape.dims
    params = AcceptParams(
        stop=shape.layers,
        granularity=granularity,  # type: ignore[arg-type]
        rule=rule,  # type: ignore[arg-type]
        need=elements,
        log_tau=-1.0,
        keep="main",
        redraft=shape.redraft,
        expected=expected,
        temperature=temperature,
    )
    logits = (1, shape.layers, shape.steps, shape.dims, shape.levels)
    fixed = constants(params, logits, shape.hidden, shape.action_dims, launch)
    warps = int(fixed.pop("num_warps"))
    types = {"logits": f"*{dtype}", "B": "i32", "need": "i32", "log_tau": "fp32", "temperature_bits": "i64"}
    types |= {name: "i32" for name in ("stride_b", "stride_l", "stride_t", "stride_d")}
    types |= {name: "*i32" for name in INTEGERS} | {name: "*fp32" for name in FLOATS}
    missing = {} if temperature > 0 else {"uniforms": None, "draft_probs": None}
    missing |= {} if shape.hidden else {name: None for name in WEIGHTS}
    optional = ("uniforms", "draft_probs", *WEIGHTS)
    types |= {name: "*fp32" for name in optional if name not in missing}
    return compile_kernel(accept_kernel, types, {**fixed, **missing, "stride_v": 1}, capability, warps)


def compile_kernel(
    kernel: triton.JITFunction,
    types: dict[str, str],
    constexprs: dict[str, object],
    capability: int,
    warps: int,
) -> Resources:
    """Compiles a kernel; every pointer is taken to be aligned to 16 bytes, as torch's allocations are."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return read_resources(compiled.asm["cubin"], compiled.metadata.shared, warps)


def read_resources(cubin: bytes, shared: int, warps: int) -> Resources:
    """What the assembler wrote into a cubin of one kernel; shared memory is asked for at launch, so it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = cuobjdump("--dump-resource-usage", path)
        code = cuobjdump("--dump-sass", path)
    found = {name: int(value) for name, value in re.findall(r"(REG|SHARED):(\d+)", usage)}
    # Not STACK: a call of the float64 division keeps its return address there.
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    instructions = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    step = instructions[1][0] - instructions[0][0]
    jumps = [(at, int(to[1], 16)) for at, text in instructions if (to := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text))]
    loops = [(at - to) // step + 1 for at, to in jumps if to < at]
    return Resources(
        found["REG"], spills, found["SHARED"] + shared, warps, len(instructions), max(loops, default=0)
    )


def cuobjdump(option: str, path: Path) -> str:
    """What Triton's own `cuobjdump` says about a cubin."""
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def report() -> list[str]:
    """Prints a row for every shape, form and architecture; returns what is over the budget."""
    over = []
    columns = f"{'batch':>6} {'warps':>5} {'regs':>5} {'spills':>6} {'shared':>7} {'text':>6} {'loop':>5}"
    print(f"{'L T D V hidden':18} {'form':26} {'arch':6} {columns}")
    for shape in (*SHIPPED, EXTREME):
        name = f"{shape.layers} {shape.steps} {shape.dims} {shape.levels} {shape.hidden}"
        for form, capability, batch in product(FORMS, CAPABILITIES, BATCHES):
            used = compile_accept(shape, form, capability, launch=launch_of(shape, form, "bf16", batch))
            numbers = f"{used.warps:5} {used.registers:5} {used.spills:6} {used.shared:7}"
            text = f"{used.instructions:6} {used.largest_loop:5}"
            row = f"{name:18} {form:26} sm_{capability:<3} {batch:6} {numbers} {text}"
            print(row, flush=True)
            if used.shared > SHARED_LIMIT or (shape in SHIPPED and used.spills > 0):
                over.append(row)
    return over


if __name__ == "__main__":
    rows = report()
    for module in MORE_CHECKS:
        rows += import_module(module).report()
    sys.exit("\n".join(["over the budget:", *rows]) if rows else 0)
