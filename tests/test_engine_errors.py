"""What the engine refuses, with got and expected, and that it goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsd_fast.codec import CodecConfig, RFSQCodec
from rsd_fast.engine import RSDInferenceEngine
from tests.policies import INSTRUCTIONS, observation, tiny_policy

INSTRUCTION = INSTRUCTIONS[0]
SAMPLING = {"granularity": "layer", "rule": "exact", "theta": 1.0, "temperature": 0.8}


def tiny(**settings: Any) -> RSDInferenceEngine:
    parts = tiny_policy()
    return RSDInferenceEngine(parts.main, parts.draft, parts.codec, **{"device": "cpu"} | settings)


@pytest.fixture(scope="module")
def engine() -> RSDInferenceEngine:
    return tiny()



@pytest.mark.parametrize(
    ("obs", "instruction", "message"),
    [
        (observation() | {"full_image": np.zeros((32, 32), np.uint8)}, "lift", r"shape \(32, 32\), expected"),
        (observation() | {"wrist_image": np.zeros((32, 32, 3))}, "lift", "dtype float64, expected uint8"),
        (observation() | {"state": np.zeros(9)}, "lift", r"shape \(9,\), expected \(8,\)"),
        (observation() | {"state": np.full(8, np.nan)}, "lift", "NaN or infinite values: .* expected finite"),
        ({"full_image": observation()["full_image"], "state": np.zeros(8)}, "lift", "no 'wrist_image'; .* expected"),
        (observation(), " ", "got instruction ' ', expected a non-empty string"),
        (observation(), "lift it " * 40, "tokens, this model takes at most 12"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_trace(engine: RSDInferenceEngine, obs, instruction: str, message: str):
    expected, _ = engine.generate_action(observation(), INSTRUCTION)
    counted = engine.stats()
    with pytest.raises(ValueError, match=message):
        engine.generate_action(obs, instruction)
    with pytest.raises(ValueError, match=message):
        engine.generate_actions([observation(), obs], [INSTRUCTION, instruction])
    assert engine.stats() == counted
    assert np.array_equal(engine.generate_action(observation(), INSTRUCTION)[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "greedy"}, "got mode 'greedy', expected one of .*'sequential', 'rsd', 'jacobi', 'parallel'"),
        ({"rule": "nearest"}, "got rule 'nearest', expected exact, distance"),
        ({"granularity": "row"}, "got granularity 'row', expected 'element' or 'layer'"),
        ({"keep": "both"}, r"got keep 'both', expected one of \['main', 'draft'\]"),
        ({"theta": 0.0}, r"got theta 0\.0, expected a share in"),
        ({"theta": float("nan")}, "got theta nan, expected a share in"),
        ({"stop": 0}, "got stop 0, expected 1 to the codec's 3 layers"),
        ({"stop": 4}, "got stop 4, expected 1 to the codec's 3 layers"),
        ({"stop": 2, "tolerance": 0.1}, "got both stop and tolerance, expected at most one"),
        ({"tolerance": 0.0}, r"got tolerance 0\.0, expected a positive number"),
        ({"tolerance": float("nan")}, "got tolerance nan, expected a positive number"),
        ({"backend": "fast"}, "got backend 'fast' from the caller, expected one of"),
        ({"runtime": "warp"}, "got runtime 'warp', expected one of"),
        ({"temperature": -1.0}, r"got temperature -1\.0, expected"),
        ({"temperature": 1.0, "rule": "typical(0.1)"}, r"got temperature 1\.0 .*expected rule 'exact' when sampling"),
        ({"temperature": 1.0}, "'layer' and theta 0.75, expected 'layer' and theta 1 when sampling"),
        (SAMPLING | {"granularity": "element"}, "granularity 'element' and theta 1.0, expected 'layer'"),
        (SAMPLING | {"expected_last": True}, "sampling takes .* expected=False"),
        (SAMPLING | {"mode": "parallel"}, "sampling takes granularity 'layer'"),
        ({"token_buckets": (13,)}, r"got token_buckets .*, expected numbers from 1 to 12"),
        ({"batch_invariant": False, "batch_sizes": (0,)}, r"got batch_sizes .*, expected numbers from 1 up"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_parts_that_do_not_fit_are_refused():
    parts = tiny_policy()
    with pytest.raises(ValueError, match="mode 'rsd' needs a draft_model; without one use"):
        RSDInferenceEngine(parts.main, None, parts.codec, device="cpu")
    with pytest.raises(ValueError, match=r"main model predicts .* but the codec defines"):
        RSDInferenceEngine(parts.main, parts.draft, RFSQCodec(CodecConfig(layers=2)), device="cpu")
    other = tiny_policy(codec=CodecConfig(layers=2)).draft
    with pytest.raises(ValueError, match=r"the draft predicts .* but the main model"):
        RSDInferenceEngine(parts.main, other, parts.codec, device="cpu")
    del parts.main.heads["parallel"]
    with pytest.raises(ValueError, match=r"mode 'parallel' needs a head of .*; this model has \['hierarchical'\]"):
        RSDInferenceEngine(parts.main, None, parts.codec, mode="parallel", device="cpu")
    parts.main.tokenizer = None
    with pytest.raises(ValueError, match="main_model has no tokenizer"):
        RSDInferenceEngine(parts.main, parts.draft, parts.codec, device="cpu")


def test_missing_checkpoints_and_unknown_drafts_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at 'nowhere': expected a folder"):
        RSDInferenceEngine.from_pretrained("nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a policy folder: codec/config\.json is missing"):
        RSDInferenceEngine.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got draft 'huge', expected one of"):
        RSDInferenceEngine.from_pretrained(draft="huge")
    with pytest.raises(TypeError, match="thteta"):
        RSDInferenceEngine.from_pretrained(thteta=0.9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(RuntimeError, match=r"got device 'cuda', but torch .* sees no GPU; use device='cpu'"):
        tiny(device="cuda")
    assert tiny(device="auto").describe()["device"] == "cpu"
