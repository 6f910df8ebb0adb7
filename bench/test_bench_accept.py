"""The tail of a pass, `accept_` with the action decoder: `pytest bench/ --benchmark-only --benchmark-json FILE`.

The timed call is the first pass of a round whose draft main agrees with everywhere: all layers are accepted, the
sample finishes and its actions are decoded. A group is the same work on the same data; its providers differ. Times are
what a caller waits, the dispatcher of `accept_` and (on a GPU) the synchronisation included; `device_us` in extra_info
is the GPU's own time by CUDA events. `bench/gpu_accept.py` has the GPU's throughput over many calls in one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import pytest
import torch

from bench.numpy_accept import NumpyAccept
from bench.shapes import REDRAFT, SHAPES
from rsd_fast.kernels.accept import AcceptParams, RoundState, accept_
from rsd_fast.kernels.registry import pick
from tests.kernels.accept_cases import Case, copy_state, random_case

GPU_ONLY = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def timed_case(name: str, batch: int) -> Case:
    layers, steps, dims, levels = SHAPES[name]
    params = AcceptParams(layers, "layer", "distance", steps * dims, 0.0, "main", REDRAFT[name], False, 0.0)
    sizes = (batch, layers, steps, dims, levels)
    case = random_case(params, sizes, seed=0, dtype=torch.bfloat16, slack=0, hidden=64)
    case.state.begin_(case.logits[:, : layers - 1].argmax(-1).int(), layers - 1, levels // 2)
    return case


def moved_bytes(case: Case) -> int:
    """What a call must move: logits, codes and the small buffers in, the last layer's codes and the rest out."""
    assert case.actions is not None
    batch, layers, steps, dims, _ = case.logits.shape
    elements = batch * steps * dims
    ints = (layers + 1) * elements + 2 * elements + batch * (3 + 3 + 2 * layers)
    return case.logits.numel() * case.logits.element_size() + 4 * (ints + elements + case.actions.numel())


def call(case: Case, backend: str) -> Callable[[], None]:
    optional = {"decoder": case.decoder, "actions": case.actions, "backend": backend}
    return lambda: accept_(case.logits, case.state, case.codebook, case.slack, case.params, **optional)


def restore(case: Case) -> Callable[[], None]:
    saved = copy_state(case.state)

    def put_back() -> None:
        for field in fields(RoundState):
            getattr(case.state, field.name).copy_(getattr(saved, field.name))

    return put_back


def describe(benchmark, name: str, batch: int, provider: str, device: str, moved: int) -> None:
    benchmark.group = f"accept {name} B{batch} {device}"
    layers, steps, dims, levels = SHAPES[name]
    elements = batch * layers * steps * dims * levels
    benchmark.extra_info.update(op="accept", shape=name, batch=batch, dtype="bfloat16", device=device)
    benchmark.extra_info.update(provider=provider, baseline="torch", bytes=moved, elements=elements)


@pytest.mark.parametrize("provider", ["cpu", "numpy", "torch"])
@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("name", SHAPES)
def test_accept_on_the_cpu(benchmark, name, batch, provider):
    """`cpu`: the C++ backend. `torch`: the reference. `numpy`: bench/numpy_accept.py."""
    case = timed_case(name, batch)
    wanted = case.run("reference")
    run = NumpyAccept(case) if provider == "numpy" else call(case, {"torch": "reference"}.get(provider, provider))
    put_back = restore(case)
    describe(benchmark, name, batch, provider, "cpu", moved_bytes(case))
    benchmark.pedantic(run, setup=put_back, rounds=500 if batch == 1 else 60, warmup_rounds=20)
    for field in fields(RoundState):
        assert torch.equal(getattr(case.state, field.name), getattr(wanted.state, field.name)), field.name
    assert case.state.finished.all()
    torch.testing.assert_close(case.actions, wanted.actions, rtol=1e-4, atol=1e-4)


@GPU_ONLY
@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["triton", "triton graph", "torch", "torch graph", "torch.compile"])
@pytest.mark.parametrize("batch", [1, 64, 4096, 65536])
@pytest.mark.parametrize("name", SHAPES)
def test_accept_on_a_gpu(benchmark, name, batch, provider):
    """`torch`: the reference, eager. `graph`: replayed as a CUDA graph. `torch.compile`: its own graph."""
    from bench.gpu_accept import captured, check, compiled, make_work, median_us

    work = make_work(batch, name, calls=1)
    triton, reference = partial(accept_, backend="triton"), pick("accept", "cuda", "reference").run
    check(work.outputs(triton), work.outputs(reference), work.decoder)
    if provider == "torch.compile":
        torch._dynamo.reset()
        run = partial(work.call, compiled(work, "reduce-overhead"), 0)
        for _ in range(3):  # compiles, then records its graph
            work.restore()
            run()
    elif provider.endswith("graph"):
        once = partial(work.call, triton if provider == "triton graph" else reference, 0)
        run = captured(once, once)
    else:
        run = partial(work.call, triton if provider == "triton" else reference, 0)

    def timed() -> None:
        run()
        torch.cuda.synchronize()

    def put_back() -> None:
        work.restore()
        torch.cuda.synchronize()

    describe(benchmark, name, batch, provider, "cuda", work.bytes())
    benchmark.extra_info["device_us"] = median_us(run, work.restore, 1, 0.5)
    benchmark.pedantic(timed, setup=put_back, rounds=200 if batch <= 64 else 40, warmup_rounds=10)
    assert bool(work.states[0].finished.all())
