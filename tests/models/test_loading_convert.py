"""Conversion gives back what was loaded; the self-check finds a policy that does not look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import load_policy
from rsd_fast.models.convert import run, write_policy, write_shards
from rsd_fast.models.convert_config import ConvertConfig
from rsd_fast.models.loading import OpenVLAOptions, from_openvla, open_openvla
from rsd_fast.self_check import check_sees
from tests.models.openvla_files import INSTRUCTION, STEPS
from tests.models.original_files import parts, write_everything
from tests.models.test_openvla_original import OBSERVATION


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("files"))


# ---- does it look


def test_a_loaded_policy_sees_and_a_blind_one_is_found_out(files: Path):
    policy = from_openvla(files / "oft", device="cpu", **parts(files))
    engine = RSDInferenceEngine(policy.main, policy.draft, policy.codec, device="cpu")
    assert check_sees(engine, INSTRUCTION, size=64) > 0
    with torch.no_grad():
        policy.main.projector.fc3.weight.zero_()
    with pytest.raises(ValueError, match="same actions before black and before white images"):
        check_sees(engine, INSTRUCTION, size=64)


def test_actions_that_are_no_numbers_are_found_out():
    class Broken:
        def generate_action(self, obs, task_description):
            return np.full((8, 7), np.nan), {}

    with pytest.raises(ValueError, match="NaN or infinite"):
        check_sees(Broken())


# ---- conversion


def test_a_converted_folder_gives_the_same_actions(files: Path, tmp_path: Path):
    out = tmp_path / "policy"
    run(ConvertConfig(checkpoint=str(files / "oft"), out=out, **parts(files)))
    assert sorted(path.name for path in out.iterdir()) == ["codec", "draft-original", "main"]
    policy = from_openvla(files / "oft", device="cpu", **parts(files))
    for model in (policy.main, policy.draft):
        assert model is not None
        for parameter in model.parameters():  # a folder of ours is in bfloat16
            parameter.data = parameter.data.bfloat16().float()
    expected, info = RSDInferenceEngine(policy.main, policy.draft, policy.codec, device="cpu").generate_action(
        OBSERVATION, INSTRUCTION
    )
    engine = RSDInferenceEngine.from_pretrained(out, draft="original", device="cpu")
    actions, other = engine.generate_action(OBSERVATION, INSTRUCTION)
    assert np.array_equal(info["codes"], other["codes"]) and np.array_equal(actions, expected)
    with pytest.raises(FileExistsError, match="exists already"):
        run(ConvertConfig(checkpoint=str(files / "oft"), out=out))


def test_a_conversion_in_shards_gives_the_same_weights(files: Path, tmp_path: Path):
    source = open_openvla(files / "oft", options=OpenVLAOptions(steps=STEPS))
    write_policy(source, tmp_path / "policy", shard_bytes=100_000)
    shards = list((tmp_path / "policy" / "main").glob("model-*.safetensors"))
    assert len(shards) > 2 and not list((tmp_path / "policy" / "main").glob("[0-9]*"))
    loaded = load_policy(tmp_path / "policy", draft=None)
    expected = from_openvla(files / "oft", steps=STEPS, device="cpu", dtype=torch.bfloat16)
    got, wanted = loaded.main.state_dict(), expected.main.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert loaded.main.config == expected.main.config
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match="the download is not complete"):
        load_policy(tmp_path / "policy", draft=None)


def test_a_conversion_checks_before_it_writes(files: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="none of the draft models"):
        wrong = parts(files) | {"draft": files / "rfsq.pt"}
        run(ConvertConfig(checkpoint=str(files / "oft"), out=tmp_path / "policy", **wrong))
    assert not list(tmp_path.iterdir())


def test_shards_hold_at_most_their_size_or_one_tensor(tmp_path: Path):
    tensors = {f"t{i}": torch.ones(size) for i, size in enumerate([10, 10, 100, 5, 5])}
    write_shards(tensors.items(), tmp_path, shard_bytes=80)
    held = [list(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert held == [["t0", "t1"], ["t2"], ["t3", "t4"]]
