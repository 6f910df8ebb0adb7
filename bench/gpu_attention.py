"""What PyTorch's attention kernels cost at this package's shapes: `python -m bench.gpu_attention --out attention.json`.

Beside the time of a call in a CUDA graph, the nodes it leaves there: a memset costs the host as much as a hundred
kernels when the graph is launched. Rows without a mask, as in vision towers and among a draft's queries; the prefill
beside this package's own kernel, which takes a mask of the prefix. Ten seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.cuda_driver import Driver
from bench.gpu_accept import machine
from rsd_fast.kernels.transformer import Plans, attention, pack_mask
from rsd_fast.kernels.transformer.tuning import median_graph_us

CUDA = torch.device("cuda")
CALLS = 20
# Name: batch, tokens, heads, width of a head.
SHAPES = {
    "nano's vision": (2, 64, 3, 64),
    "a draft's queries": (1, 8, 3, 64),
    "DINOv2-L": (2, 261, 16, 64),
    "SigLIP-So400m": (2, 256, 16, 72),
    "prefill, 545 tokens": (1, 545, 32, 128),
    "prefill, 608 tokens": (1, 608, 32, 128),
}
BACKENDS = {
    "PyTorch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
Call = Callable[[], Tensor]


def time_calls(driver: Driver, make: Callable[[], Call]) -> dict[str, Any]:
    """Microseconds of a call among `CALLS` on inputs of their own in one graph, and the nodes of one call."""
    calls = [make() for _ in range(CALLS)]
    us = median_graph_us(lambda: [call() for call in calls], CALLS)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        calls[0]()
    return {"us": us, "nodes": dict(driver.nodes(graph.raw_cuda_graph()))}


def pytorch(backend: SDPBackend | None, batch: int, tokens: int, heads: int, width: int) -> Call:
    """Attention of fresh tokens among one another by a kernel of PyTorch's."""
    packed = torch.randn(batch, tokens, 3, heads, width, device=CUDA, dtype=torch.bfloat16)
    query, key, value = (each.transpose(1, 2) for each in packed.unbind(2))

    def call() -> Tensor:
        with nullcontext() if backend is None else sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return call


def own(tokens: int, heads: int, width: int) -> Call:
    """The same in a prefill of this package: keys and values lie in the cache, and a mask says which count."""
    tile = Plans.of(CUDA).attention("prefill", tokens, heads, width)
    cos, sin = (torch.randn(tokens, width // 2, device=CUDA) for _ in range(2))
    mask = pack_mask(torch.ones(1, tokens, device=CUDA, dtype=torch.bool))
    packed = torch.randn(1, tokens, 3 * heads * width, device=CUDA, dtype=torch.bfloat16)
    keys, values = (torch.randn(1, heads, tokens, width, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    return lambda: attention(packed, cos, sin, keys, values, mask, None, False, tile=tile)


def rows(driver: Driver) -> Iterator[dict[str, Any]]:
    """PyTorch's kernels at every shape, and ours at those of a prefill."""
    for shape, (batch, tokens, heads, width) in SHAPES.items():
        for name, backend in BACKENDS.items():
            make = partial(pytorch, backend, batch, tokens, heads, width)
            yield {"shape": shape, "kernel": name, **time_calls(driver, make)}
        if shape.startswith("prefill"):
            made = partial(own, tokens, heads, width)
            yield {"shape": shape, "kernel": "ours, with a mask", **time_calls(driver, made)}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one")
    with torch.inference_mode():
        found = list(rows(Driver()))
    for row in found:
        print(f"{row['shape']:20} {row['kernel']:20} {row['us']:7.2f} us  {row['nodes']}")
    told = {"machine": machine(0.0), "calls": CALLS, "rows": found}
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
