"""Rounds as CUDA graphs: the eager, the host-driven and the device-resident loop give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.cuda_driver import Driver
from rsd_fast.acceptance import Acceptance, lossless, typical
from rsd_fast.decoding import ChunkDecoder
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import load_policy
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.observation import build_inputs
from rsd_fast.policy_round import PolicyRound, RoundParts
from rsd_fast.proposal import Proposal
from rsd_fast.runtime import CapturedStages, RoundLoop, make_loop
from tests.policies import four_heads

pytestmark = pytest.mark.gpu

RUNTIMES = ("eager", "graph", "device-loop")
CUDA = torch.device("cuda")
DRAFTS = 10_000
BATCH = 64


class DraftedRound(PolicyRound):
    """A round whose draft is whatever the test wrote into `draft_codes`."""

    draft_codes: Tensor

    def propose(self) -> None:
        self.start(Proposal(self.draft_codes) if self.parts.decoder.mode == "rsd" else None)


def observations(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "full_image": generator.integers(0, 256, (128, 128, 3), dtype=np.uint8),
            "wrist_image": generator.integers(0, 256, (128, 128, 3), dtype=np.uint8),
            "state": generator.normal(size=8).astype(np.float32),
        }
        for _ in range(count)
    ]


def make_round(mode: str, acceptance: Acceptance, batch: int = BATCH) -> DraftedRound:
    engine = RSDInferenceEngine.from_pretrained(mode="sequential", device=CUDA, runtime="eager")
    main, codec = engine.main, engine.codec
    decoder = ChunkDecoder(codec, acceptance, mode, steps=main.config.head.steps)
    made = DraftedRound(RoundParts(main, None, codec, decoder), batch, main.config.max_tokens, CUDA)
    layers, steps, dims = codec.config.layers - 1, main.config.head.steps, codec.config.latent_dims
    made.draft_codes = torch.zeros(batch, layers, steps, dims, dtype=torch.int32, device=CUDA)
    return made


def random_inputs(made: PolicyRound, generator: torch.Generator) -> PolicyInputs:
    host = made.inputs.on_host
    return PolicyInputs(
        torch.randint(0, 256, host["images"].shape, generator=generator, dtype=torch.uint8),
        torch.randn(host["proprio"].shape, generator=generator),
        torch.randint(0, 200, host["tokens"].shape, generator=generator),
        torch.ones(host["token_mask"].shape, dtype=torch.bool),
    )


def run(made: PolicyRound, loop: RoundLoop) -> dict[str, Tensor]:
    with torch.inference_mode():
        for output in made.outputs.on_host.values():
            output.fill_(77)
        loop.run()
    return {name: output.clone() for name, output in made.outputs.on_host.items()}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor], names: tuple[str, ...]) -> None:
    for name in names:
        assert torch.equal(got[name], wanted[name]), name


@pytest.mark.parametrize("runtime", ["graph", "device-loop"])
def test_ten_thousand_drafts_decode_to_the_codes_of_sequential_decoding(runtime):
    """Layer, exact, theta 1; random drafts, drafts that are right up to some layer."""
    sequential, drafted = make_round("sequential", lossless()), make_round("rsd", lossless())
    with torch.inference_mode():
        loops = {made: make_loop(runtime, made.stages()) for made in (sequential, drafted)}
    generator = torch.Generator().manual_seed(0)
    layer = torch.arange(drafted.draft_codes.shape[1])[:, None, None]
    seen = set()
    for start in range(0, DRAFTS, BATCH):
        if start % (16 * BATCH) == 0:
            inputs = random_inputs(sequential, generator)
            sequential.fill(inputs)
            drafted.fill(inputs)
            wanted = run(sequential, loops[sequential])
            assert (wanted["passes"] == 3).all()
        noise = torch.randint(0, 5, drafted.draft_codes.shape, generator=generator, dtype=torch.int32)
        right = torch.randint(0, 3, (BATCH, 1, 1, 1), generator=generator)
        drafted.draft_codes.copy_(torch.where(layer < right, wanted["codes"][:, :-1], noise))
        got = run(drafted, loops[drafted])
        assert_equal(got, wanted, ("codes", "actions"))
        assert (got["passes"] <= 3).all()
        seen |= set(got["passes"].tolist())
    assert {1, 2, 3} <= seen


@pytest.mark.parametrize("mode", ["sequential", "rsd", "jacobi", "parallel"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("acceptance", [Acceptance(), Acceptance(typical(0.1), "element", 0.95)])
def test_all_loops_give_the_same_bits(mode, batch, acceptance):
    made = make_round(mode, acceptance, batch)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        loops = {runtime: make_loop(runtime, made.stages()) for runtime in RUNTIMES}
    for _ in range(8):
        made.fill(random_inputs(made, generator))
        made.draft_codes.copy_(torch.randint(0, 5, made.draft_codes.shape, generator=generator))
        results = [run(made, loop) for loop in loops.values()]
        assert torch.isfinite(results[0]["actions"]).all()
        for got in results[1:]:
            assert_equal(got, results[0], tuple(got))


@pytest.mark.parametrize("draft", ["regression", "coarse"])
def test_an_engine_decodes_the_same_with_every_runtime(draft):
    seen = observations(6)
    results = []
    for runtime in RUNTIMES:
        engine = RSDInferenceEngine.from_pretrained(draft=draft, device="cuda", runtime=runtime, batch_sizes=(4,))
        assert engine.describe()["runtime"] == runtime
        actions, infos = engine.generate_actions(seen, ["lift the red cube"] * 6)
        results.append((actions, [info["passes"] for info in infos]))
        assert set(infos[0]["ms"]) == {"vision", "prefill", "draft", "passes", "tail", "total"}
        assert all(spent >= 0 for spent in infos[0]["ms"].values())
        assert infos[0]["ms"]["prefill"] > 0 and infos[0]["ms"]["passes"] > 0
    for actions, passes in results[1:]:
        np.testing.assert_array_equal(actions, results[0][0])
        assert passes == results[0][1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_gpu_that_is_not_the_current_one(runtime: str):
    seen, words = observations(2), ["lift the red cube"] * 2
    results = []
    for device in ("cuda:0", "cuda:1"):
        engine = RSDInferenceEngine.from_pretrained(device=device, runtime=runtime)
        results.append(engine.generate_actions(seen, words)[0])
        assert torch.cuda.current_device() == 0
    np.testing.assert_array_equal(*results)


def test_engines_that_share_a_model_leave_each_other_alone():
    """Memory that an engine's graphs read may not be given back when another one is made of the same parts."""
    seen, words = observations(4), ["lift the red cube"] * 4
    parts = load_policy(None, "coarse", CUDA)
    settings = {"device": CUDA, "batch_sizes": (4,)}
    first = RSDInferenceEngine(parts.main, None, parts.codec, mode="sequential", **settings)
    wanted, _ = first.generate_actions(seen, words)
    RSDInferenceEngine(parts.main, parts.draft, parts.codec, mode="rsd", **settings)
    # Whatever was given back is written over: blocks of all small sizes.
    scribbles = [torch.full((1 << size,), 1e9, device=CUDA) for size in range(4, 18) for _ in range(40)]
    got, _ = first.generate_actions(seen, words)
    assert len(scribbles) and np.array_equal(got, wanted)


def test_sampling_draws_anew_in_every_round_and_the_same_in_every_runtime():
    settings = {"temperature": 1.0, "granularity": "layer", "rule": "exact", "theta": 1.0, "draft": "coarse"}
    (seen,) = observations(1)
    drawn = []
    for runtime in RUNTIMES:
        engine = RSDInferenceEngine.from_pretrained(device="cuda", runtime=runtime, seed=3, **settings)
        codes = [engine.generate_action(seen, "lift the red cube")[1]["codes"] for _ in range(4)]
        assert any((codes[0] != other).any() for other in codes[1:])
        drawn.append(codes)
    for other in drawn[1:]:
        np.testing.assert_array_equal(np.stack(other), np.stack(drawn[0]))


def test_a_launch_of_the_device_loop_is_one_call_and_waits_for_nothing():
    """What the profiler sees between the start of a round and its end on the host: one graph launch."""
    made = make_round("rsd", Acceptance(), 1)
    with torch.inference_mode():
        loop = make_loop("device-loop", made.stages())
        loop.run()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
            for _ in range(5):
                loop.launch()
        torch.cuda.synchronize()
    calls = [event.name for event in profile.events() if event.name.startswith("cuda")]
    launches = [name for name in calls if "GraphLaunch" in name]
    assert len(launches) == 5, calls
    others = {name for name in calls if name not in launches}
    waits_or_work = ("Memcpy", "LaunchKernel", "StreamSynchronize", "EventSynchronize")
    assert not any(word in name for name in others for word in waits_or_work), others


@pytest.mark.parametrize("mode", ["sequential", "rsd"])
def test_a_round_has_no_memset(mode):
    """Each costs the host a microsecond of every launch; attention of PyTorch's choice has one a call."""
    made, driver = make_round(mode, Acceptance(), 1), Driver()
    with torch.inference_mode():
        captured = CapturedStages(made.stages())
    for graph in (*captured.head.values(), captured.forward, captured.accept):
        assert driver.nodes(graph.raw_cuda_graph())["memset"] == 0


def test_no_call_allocates_or_captures():
    engine = RSDInferenceEngine.from_pretrained(device="cuda", batch_sizes=(1, 3))
    seen = observations(5)
    engine.generate_actions(seen, ["lift the red cube"] * 5)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    for _ in range(10):
        engine.generate_actions(seen, ["lift the red cube"] * 5)
    after = torch.cuda.memory_stats()
    assert after["allocation.all.allocated"] == before["allocation.all.allocated"]
    assert after["reserved_bytes.all.current"] == before["reserved_bytes.all.current"]


def test_token_buckets_change_rounding_only():
    (seen,) = observations(1)
    plain = RSDInferenceEngine.from_pretrained(device="cuda", mode="sequential")
    bucketed = RSDInferenceEngine.from_pretrained(device="cuda", mode="sequential", token_buckets=(8, 16))
    actions, info = plain.generate_action(seen, "lift the red cube")
    short, short_info = bucketed.generate_action(seen, "lift the red cube")
    assert (short_info["codes"] == info["codes"]).mean() > 0.9
    np.testing.assert_allclose(short, actions, atol=0.1)
    assert bucketed.memory()["graphs"] > 0


@pytest.mark.parametrize(
    ("mode", "draft"),
    [
        ("conditioned", "regression"),
        ("conditioned", "coarse"),
        ("regression", None),
        ("draft", "regression"),
        ("draft", "coarse"),
    ],
)
def test_baselines_decode_the_same_with_every_runtime(mode: str, draft: str | None):
    """With fresh heads on the shipped backbone; the regression is held against itself, unfused, too."""
    seen, told = observations(6), ["lift the red cube"] * 6
    results = []
    for runtime in RUNTIMES:
        parts = four_heads(load_policy(draft=draft))
        engine = RSDInferenceEngine(
            parts.main, parts.draft, parts.codec, mode=mode, device="cuda", runtime=runtime, batch_sizes=(4,)
        )
        actions, infos = engine.generate_actions(seen, told)
        assert [info["passes"] for info in infos] == [0 if mode == "draft" else 1] * 6
        results.append((actions, np.stack([info["codes"] for info in infos])))
        assert np.isfinite(actions).all() and not np.array_equal(actions[0], actions[1])
    if mode == "regression":
        plain = four_heads(load_policy(draft=None))
        inputs = build_inputs(seen, told, plain.main.config, plain.main.tokenizer)
        with torch.inference_mode():
            wanted = plain.codec.normalizer.unnormalize(plain.main.actions(plain.main.prefill(inputs)))
        np.testing.assert_allclose(results[0][0], wanted.numpy(), atol=0.05)  # bfloat16 against float32
    for actions, codes in results[1:]:
        np.testing.assert_array_equal(actions, results[0][0])
        np.testing.assert_array_equal(codes, results[0][1])
