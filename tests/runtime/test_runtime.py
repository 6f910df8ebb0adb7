"""The runtime without a GPU: static buffers, the choice of a loop, and the eager loop against the plain one."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_fast.acceptance import Acceptance, lossless, typical
from rsd_fast.decoding import ChunkDecoder
from rsd_fast.kernels import cuda
from rsd_fast.kernels.accept import RoundState
from rsd_fast.policy_round import describe_state, split
from rsd_fast.proposal import Proposal
from rsd_fast.runtime import EagerLoop, PackedBuffers, RoundStages, choose_runtime, make_loop
from rsd_fast.runtime.clock import STAGES
from tests.toys import HashMain, toy_codec

CPU = torch.device("cpu")
LAYOUT = {
    "a": ((2, 3), torch.float32),
    "b": ((5,), torch.bool),
    "none": ((0, 4), torch.int64),
    "c": ((7,), torch.int64),
}


def test_packed_buffers_are_aligned_views_that_do_not_overlap():
    packed = PackedBuffers(LAYOUT, CPU)
    for number, (name, (shape, dtype)) in enumerate(LAYOUT.items(), 1):
        view = packed.on_device[name]
        assert view.shape == shape and view.dtype == dtype and view.is_contiguous()
        assert view.data_ptr() % 16 == 0 or view.numel() == 0
        view.fill_(number)
    for number, (name, (shape, dtype)) in enumerate(LAYOUT.items(), 1):
        assert torch.equal(packed.on_device[name], torch.full(shape, number).to(dtype))


def test_on_the_cpu_host_and_device_are_the_same_memory():
    packed = PackedBuffers(LAYOUT, CPU)
    packed.on_host["a"].fill_(3.0)
    packed.upload()
    assert (packed.on_device["a"] == 3).all()
    packed.on_device["c"].fill_(4)
    packed.download()
    assert (packed.on_host["c"] == 4).all()


def test_the_cpu_is_driven_eagerly_and_other_wishes_are_errors():
    assert choose_runtime("auto", CPU) == choose_runtime("eager", CPU) == "eager"
    with pytest.raises(ValueError, match="got runtime 'fast', expected one of"):
        choose_runtime("fast", CPU)
    for runtime in ("graph", "device-loop"):
        with pytest.raises(ValueError, match="CUDA graphs need an NVIDIA GPU"):
            choose_runtime(runtime, CPU)


def test_without_a_device_loop_graphs_serve_and_say_why(monkeypatch):
    monkeypatch.setattr("rsd_fast.runtime.why_no_device_loop", lambda: "nvcc was not found")
    with pytest.warns(RuntimeWarning, match="the host drives the passes, because nvcc was not found"):
        assert choose_runtime("auto", torch.device("cuda")) == "graph"
    with pytest.raises(RuntimeError, match="'device-loop' cannot run here: nvcc was not found"):
        choose_runtime("device-loop", torch.device("cuda"))
    monkeypatch.setattr("rsd_fast.runtime.why_no_device_loop", lambda: None)
    assert choose_runtime("auto", torch.device("cuda")) == "device-loop"


def test_a_missing_cuda_part_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "librsd_fast_loop.so")
    with pytest.raises(ImportError, match=r"was not built: install CUDA's nvcc \(12.4 or newer\)"):
        cuda.load.__wrapped__()
    (tmp_path / "librsd_fast_loop.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match="does not load"):
        cuda.load.__wrapped__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.skipif(not cuda.LIBRARY.exists(), reason="built only where there is nvcc")
def test_without_a_driver_the_compiled_part_says_so():
    ctypes.CDLL(str(cuda.LIBRARY))  # loads without libcuda
    with pytest.raises(ImportError, match=r"no NVIDIA driver|conditional graph nodes need 12.4"):
        cuda.load.__wrapped__()


class ToyRound:
    """A round over `HashMain`, in static buffers."""

    def __init__(self, decoder: ChunkDecoder, batch: int, draft: Proposal | None) -> None:
        codec = decoder.codec.config
        shape = (batch, codec.layers, decoder.steps, codec.latent_dims)
        self.decoder, self.draft = decoder, draft
        self.main = HashMain(codec, decoder.steps, torch.arange(batch))
        self.state = RoundState.new(*shape)
        self.inputs = PackedBuffers({"nothing": ((batch,), torch.float32)}, CPU)
        self.outputs = PackedBuffers({"actions": ((batch, decoder.steps, codec.action_dims), torch.float32)}, CPU)
        self.logits = torch.empty(0)

    def propose(self) -> None:
        self.decoder.begin_(self.state, self.draft)

    def forward(self) -> None:
        self.logits = self.main(self.state.codes)

    def accept(self) -> None:
        self.decoder.accept(self.logits, self.state, self.outputs.on_device["actions"])

    def stages(self) -> RoundStages:
        head = {"draft": self.propose}
        finished, stop = self.state.finished, self.decoder.stop
        return RoundStages(head, self.forward, self.accept, finished, stop, self.inputs, self.outputs)


@given(
    st.sampled_from([Acceptance(), lossless(), Acceptance(typical(0.1), "element", 0.95)]),
    st.sampled_from(["sequential", "rsd", "jacobi", "parallel"]),
    st.integers(1, 9),
    st.integers(0, 1 << 20),
)
@settings(max_examples=40)
def test_the_eager_loop_is_the_plain_one_to_the_bit_round_after_round(acceptance, mode, batch, seed):
    codec = toy_codec()
    decoder = ChunkDecoder(codec, acceptance, mode, steps=4)
    generator = torch.Generator().manual_seed(seed)
    draft = None
    if mode == "rsd":
        draft = Proposal(torch.randint(0, 5, (batch, 2, 4, 7), generator=generator, dtype=torch.int32))
    actions, state = decoder.run(HashMain(codec.config, 4, torch.arange(batch)), batch, draft)
    made = ToyRound(decoder, batch, draft)
    loop = make_loop("eager", made.stages())
    assert isinstance(loop, EagerLoop)
    for _ in range(2):  # nothing is left over from the round before
        loop.run()
        assert torch.equal(made.outputs.on_host["actions"], actions)
        assert torch.equal(made.state.codes, state.codes)
        assert torch.equal(made.state.passes, state.passes)
    spent = loop.milliseconds()
    assert set(spent) == set(STAGES) and spent["passes"] > 0 and spent["vision"] == 0


@given(st.integers(1, 100), st.sets(st.integers(1, 32)))
def test_batches_are_sums_of_the_sizes_there_are(count, sizes):
    parts = split(count, (1, *sizes))
    assert sum(parts) == count and set(parts) <= {1, *sizes}
    assert parts == sorted(parts, reverse=True)


def test_a_state_is_told_per_chunk():
    outputs = {
        "agreed": torch.tensor([[4, 2, -1]]),
        "kept": torch.tensor([[4, 1, -1]]),
        "passes": torch.tensor([2]),
        "codes": torch.ones(1, 3, 2, 2, dtype=torch.int32),
    }
    (info,) = describe_state(outputs, elements=4)
    assert info["passes"] == 2 and info["accepted_layers"] == 1.25
    assert info["match_rates"] == [1.0, 0.5] and info["kept_rates"] == [1.0, 0.25]
    outputs["codes"].zero_()
    assert (info["codes"] == 1).all(), "an info outlives the round"
