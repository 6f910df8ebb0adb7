"""The engine as evaluation scripts use it: what comes out, and the same bits where it promises them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsd_fast.codec import CodecConfig
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import PolicyParts
from rsd_fast.sim.robosuite_suite import SUITE
from tests.policies import INSTRUCTIONS, STEPS, observation, tiny_policy

INSTRUCTION = INSTRUCTIONS[0]
STAGES = {"vision", "prefill", "draft", "passes", "tail", "total"}
LOSSLESS = {"granularity": "layer", "rule": "exact", "theta": 1.0}
SAMPLING = LOSSLESS | {"temperature": 0.8}
EVERY_MODE = [("sequential", None), ("rsd", "regression"), ("rsd", "coarse"), ("jacobi", None), ("parallel", None)]


def engine_of(parts: PolicyParts, **settings: Any) -> RSDInferenceEngine:
    return RSDInferenceEngine(parts.main, parts.draft, parts.codec, **{"device": "cpu"} | settings)


def tiny(mode: str = "rsd", draft: str | None = "regression", **settings: Any) -> RSDInferenceEngine:
    return engine_of(tiny_policy(draft), mode=mode, **settings)


@pytest.fixture(scope="module")
def engine() -> RSDInferenceEngine:
    return tiny()


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[list[dict[str, np.ndarray]], list[str]]]:
    """What the simulator shows at the start and during an episode, of two tasks."""
    observations, instructions = [], []
    for task in SUITE.tasks[:2]:
        env = SUITE.make_env(task, image_size=128)
        observations.append(env.reset(options={"init_state": 0})[0])
        expert = SUITE.make_expert(env)
        for _ in range(12):
            env.advance(expert.act())
        observations.append(env.observe())
        instructions += [task.instruction] * 2
        env.close()
    yield observations, instructions


def shipped(mode: str = "rsd", draft: str | None = None, **settings: Any) -> RSDInferenceEngine:
    return RSDInferenceEngine.from_pretrained(mode=mode, draft=draft or "regression", device="cpu", **settings)


# ---- what comes out


@pytest.mark.parametrize(("mode", "draft"), EVERY_MODE)
def test_a_chunk_of_actions_and_what_is_told_about_it(mode: str, draft: str | None):
    engine = tiny(mode, draft)
    actions, info = engine.generate_action(observation(), INSTRUCTION)
    assert isinstance(actions, np.ndarray) and actions.dtype == np.float32 and actions.shape == (STEPS, 7)
    assert np.isfinite(actions).all()
    keys = {"passes", "accepted_layers", "match_rates", "kept_rates", "codes", "ms", "batch"}
    assert info.keys() == keys
    assert info["batch"] == 1
    assert info["codes"].shape == (3, STEPS, 7) and info["codes"].dtype == np.int32
    drafted = {None: 0, "regression": 2, "coarse": 2}[draft]
    assert len(info["match_rates"]) == len(info["kept_rates"]) == drafted
    assert all(0 <= kept <= 1 for kept in info["match_rates"] + info["kept_rates"])
    assert info["accepted_layers"] == pytest.approx(sum(info["kept_rates"]))
    assert {"sequential": info["passes"] == 3, "parallel": info["passes"] == 1}.get(mode, 1 <= info["passes"] <= 3)
    assert info["ms"].keys() == STAGES and all(spent >= 0 for spent in info["ms"].values())
    assert info["ms"]["total"] >= info["ms"]["vision"] + info["ms"]["prefill"] + info["ms"]["passes"] > 0


def test_actions_are_in_the_units_of_the_statistics():
    """Ten times the quantiles, ten times the actions; the gripper is a switch and has no unit."""
    parts = tiny_policy()
    first, _ = engine_of(parts).generate_action(observation(), INSTRUCTION)
    normalizer = parts.codec.normalizer
    normalizer.set_statistics(10 * normalizer.q01, 10 * normalizer.q99, normalizer.mask)
    second, _ = engine_of(parts).generate_action(observation(), INSTRUCTION)
    assert second[:, :6] == pytest.approx(10 * first[:, :6], rel=1e-4)
    assert np.array_equal(second[:, 6], first[:, 6])
    low, high = normalizer.q01.numpy(), normalizer.q99.numpy()
    assert (second >= low - 0.6 * (high - low)).all() and (second <= high + 0.6 * (high - low)).all()


def test_codes_decode_to_the_actions():
    engine = tiny(expected_last=False)
    actions, info = engine.generate_action(observation(), INSTRUCTION)
    assert np.array_equal(engine.codec.decode_actions(torch.from_numpy(info["codes"])).numpy(), actions)


def test_every_part_of_an_observation_counts(engine: RSDInferenceEngine):
    base = observation()
    expected, _ = engine.generate_action(base, INSTRUCTION)
    for name in base:
        changed = base | {name: observation(1)[name]}
        assert not np.array_equal(engine.generate_action(changed, INSTRUCTION)[0], expected), name
    assert not np.array_equal(engine.generate_action(base, INSTRUCTIONS[1])[0], expected)
    assert np.array_equal(engine.generate_action(base, f"  {INSTRUCTION.upper()} ")[0], expected)


def test_results_stay_when_the_engine_goes_on(engine: RSDInferenceEngine):
    actions, info = engine.generate_action(observation(), INSTRUCTION)
    kept, codes = actions.copy(), info["codes"].copy()
    engine.generate_action(observation(1), INSTRUCTIONS[1])
    assert np.array_equal(actions, kept) and np.array_equal(info["codes"], codes)
    actions[:] = 0  # the caller's to change
    assert np.array_equal(engine.generate_action(observation(), INSTRUCTION)[0], kept)


def test_a_batch_without_batch_invariance_is_the_rows_but_for_rounding():
    engine = tiny(batch_invariant=False, batch_sizes=(4,))
    observations = [observation(seed) for seed in range(6)]  # 4 + 1 + 1
    actions, infos = engine.generate_actions(observations, [INSTRUCTION] * 6)
    assert actions.shape == (6, STEPS, 7) and [info["batch"] for info in infos] == [6] * 6
    for row, seen in enumerate(observations):
        alone, info = engine.generate_action(seen, INSTRUCTION)
        assert (info["codes"] == infos[row]["codes"]).mean() > 0.99
        assert alone == pytest.approx(actions[row], abs=1e-3)


def test_short_instructions_may_run_in_a_shorter_bucket():
    whole, bucketed = tiny(), tiny(token_buckets=(8,))
    assert bucketed.token_buckets == (8, 12)
    for text in (INSTRUCTION, "lift the red cube onto it"):
        expected, told = whole.generate_action(observation(), text)
        actions, info = bucketed.generate_action(observation(), text)
        assert np.array_equal(info["codes"], told["codes"])
        assert actions == pytest.approx(expected, abs=1e-4)


def test_half_precision_runs_on_the_cpu_too():
    actions, _ = tiny(dtype=torch.bfloat16).generate_action(observation(), INSTRUCTION)
    expected, _ = tiny().generate_action(observation(), INSTRUCTION)
    assert actions.dtype == np.float32
    assert np.abs(actions - expected).mean() < 0.1


# ---- the shipped checkpoint, on what the simulator shows


@pytest.mark.parametrize("settings", [{}, {"expected_last": False}], ids=["expected", "argmax"])
def test_lossless_settings_give_the_bits_of_sequential_decoding(real, settings: dict[str, Any]):
    expected, told = shipped("sequential", **LOSSLESS, **settings).generate_actions(*real)
    assert [info["passes"] for info in told] == [3] * 4
    for mode, draft in (("rsd", "regression"), ("rsd", "coarse"), ("jacobi", None)):
        actions, infos = shipped(mode, draft, **LOSSLESS, **settings).generate_actions(*real)
        assert np.array_equal(actions, expected)
        for info, wanted in zip(infos, told, strict=True):
            assert np.array_equal(info["codes"], wanted["codes"])
            assert info["passes"] <= 3


def test_speculation_saves_passes_and_stays_near_sequential_decoding(real):
    expected, _ = shipped("sequential").generate_actions(*real)
    for draft in ("regression", "coarse"):
        engine = shipped("rsd", draft)
        actions, infos = engine.generate_actions(*real)
        assert engine.stats()["mean_passes"] <= 2
        assert np.abs(actions - expected)[..., :6].mean() < 0.1  # of commands in [-1, 1]
        assert all(rate > 0.5 for info in infos for rate in info["match_rates"][:1])
    parallel, infos = shipped("parallel").generate_actions(*real)
    assert [info["passes"] for info in infos] == [1] * 4
    assert np.abs(parallel - expected)[..., :6].mean() < 0.2


@pytest.mark.parametrize(("mode", "draft"), EVERY_MODE)
def test_on_the_cpu_a_batch_has_the_bits_of_its_rows(real, mode: str, draft: str | None):
    engine = shipped(mode, draft)
    observations, instructions = real
    together, infos = engine.generate_actions(observations, instructions)
    for row, pair in enumerate(zip(observations, instructions, strict=True)):
        alone, info = engine.generate_action(*pair)
        assert np.array_equal(alone, together[row])
        assert np.array_equal(info["codes"], infos[row]["codes"]) and info["passes"] == infos[row]["passes"]


def test_the_state_is_told_from_the_images_of_any_size(real):
    """Twice the pixels show the same scene: the actions hardly move."""
    engine = shipped("sequential")
    seen, instruction = real[0][0], real[1][0]
    large = {name: np.kron(seen[name], np.ones((2, 2, 1), np.uint8)) for name in ("full_image", "wrist_image")}
    expected, _ = engine.generate_action(seen, instruction)
    actions, _ = engine.generate_action(large | {"state": seen["state"]}, instruction)
    assert np.abs(actions - expected).mean() < 0.05


# ---- depth, sampling, statistics


def test_adaptive_depth_takes_the_fewest_layers_within_the_tolerance():
    parts = tiny_policy(None, CodecConfig(layers=6))
    full, _ = engine_of(parts, mode="sequential", expected_last=False).generate_action(observation(), INSTRUCTION)
    stops = []
    for tolerance in (1.0, 0.1, 0.03, 0.01, 1e-9):
        engine = engine_of(parts, mode="sequential", tolerance=tolerance, expected_last=False)
        actions, info = engine.generate_action(observation(), INSTRUCTION)
        stops.append(engine.describe()["stop"])
        assert info["passes"] == stops[-1]
        assert np.abs(actions - full)[:, :6].max() <= (tolerance if stops[-1] < 6 else 0)
    assert stops == sorted(stops) and stops[0] == 1 and stops[-1] == 6 and len(set(stops)) > 3


def test_stop_ends_the_round_early():
    _, info = tiny("sequential", None, stop=2).generate_action(observation(), INSTRUCTION)
    assert info["passes"] == 2
    _, info = tiny(stop=1).generate_action(observation(), INSTRUCTION)
    assert info["passes"] == 1 and info["match_rates"] == []  # the last layer is main's own


@pytest.mark.parametrize(("mode", "draft"), [("sequential", None), ("rsd", "regression"), ("rsd", "coarse")])
def test_samples_are_those_of_the_seed(mode: str, draft: str | None):
    def run(engine: RSDInferenceEngine) -> list[bytes]:
        chunks = [engine.generate_action(observation(), INSTRUCTION)[0] for _ in range(2)]
        return [chunk.tobytes() for chunk in chunks]

    first = tiny(mode, draft, seed=3, **SAMPLING)
    samples = run(first)
    assert samples[0] != samples[1]
    assert run(tiny(mode, draft, seed=3, **SAMPLING)) == samples
    assert run(tiny(mode, draft, seed=4, **SAMPLING)) != samples
    first.reseed(3)
    assert run(first) == samples


def test_sampling_leaves_the_global_generator_alone_and_does_not_read_it():
    engine = tiny(seed=0, **SAMPLING)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = engine.generate_action(observation(), INSTRUCTION)
    assert torch.equal(torch.get_rng_state(), before)
    engine.reseed(0)
    torch.manual_seed(2)
    assert np.array_equal(engine.generate_action(observation(), INSTRUCTION)[0], first)


def test_stats_count_chunks_passes_and_time_until_they_are_reset():
    engine = tiny()
    assert engine.stats() == {"chunks": 0}
    infos = [engine.generate_action(observation(seed), INSTRUCTION)[1] for seed in range(3)]
    infos += engine.generate_actions([observation(seed) for seed in range(4)], [INSTRUCTION] * 4)[1]
    stats = engine.stats()
    passes = [info["passes"] for info in infos]
    assert stats["chunks"] == 7
    assert stats["mean_passes"] == pytest.approx(np.mean(passes))
    assert stats["passes_histogram"] == {count: passes.count(count) for count in sorted(set(passes))}
    assert sum(stats["accepted_layers_histogram"].values()) == 7
    assert stats["kept_rates"] == pytest.approx(np.mean([info["kept_rates"] for info in infos], axis=0))
    assert stats["latency_ms"].keys() == STAGES
    assert all(0 <= spent["p50"] <= spent["p99"] for spent in stats["latency_ms"].values())
    json.dumps(stats)
    engine.reset_stats()
    assert engine.stats() == {"chunks": 0}


@pytest.mark.parametrize(("mode", "draft"), EVERY_MODE)
def test_describe_says_everything_that_defines_the_decoding(mode: str, draft: str | None):
    told = json.loads(json.dumps(tiny(mode, draft, theta=0.9, stop=2).describe()))
    assert (told["mode"], told["draft"], told["theta"], told["stop"]) == (mode, draft, 0.9, 2)
    assert (told["rule"], told["granularity"], told["keep"]) == ("exact", "layer", "main")
    assert (told["layers"], told["levels"], told["chunk"]) == (3, 5, STEPS)
    assert (told["device"], told["dtype"], told["batch_invariant"]) == ("cpu", "float32", True)
    assert told["backend"] in ("cpu", "reference")
    assert told["versions"].keys() >= {"rsd_fast", "torch"}
    assert tiny(backend="reference").describe()["backend"] == "reference"


def test_backends_decode_to_the_same_codes():
    results = [tiny(backend=name).generate_action(observation(), INSTRUCTION) for name in ("reference", "auto")]
    assert np.array_equal(results[0][1]["codes"], results[1][1]["codes"])
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)


# ---- a fresh process


SCRIPT = """
import sys, numpy as np
from rsd_fast.engine import RSDInferenceEngine
folder = sys.argv[1]
obs = dict(np.load(folder + "/observation.npz"))
for mode, draft in (("sequential", "regression"), ("rsd", "regression"), ("rsd", "coarse"), ("parallel", "coarse")):
    engine = RSDInferenceEngine.from_pretrained(folder, mode=mode, draft=draft, device="cpu")
    actions, info = engine.generate_action(obs, "lift the red cube")
    np.savez(f"{folder}/{mode}-{draft}.npz", actions=actions, codes=info["codes"])
"""


def test_a_saved_policy_acts_the_same_in_a_fresh_process(tmp_path: Path):
    parts = tiny_policy()
    parts.codec.save_pretrained(tmp_path / "codec")
    parts.main.save_pretrained(tmp_path / "main")
    for draft in ("regression", "coarse"):
        tiny_policy(draft).draft.save_pretrained(tmp_path / f"draft-{draft}")
    np.savez(tmp_path / "observation.npz", **observation())
    # As many threads as here: a matrix product may sum in another order for another number of them.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "MKL_NUM_THREADS": str(torch.get_num_threads())}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    for mode, draft in (("sequential", "regression"), ("rsd", "regression"), ("rsd", "coarse"), ("parallel", "coarse")):
        actions, info = tiny(mode, draft).generate_action(observation(), INSTRUCTION)
        theirs = np.load(tmp_path / f"{mode}-{draft}.npz")
        assert np.array_equal(theirs["codes"], info["codes"])
        assert np.array_equal(theirs["actions"], actions)
