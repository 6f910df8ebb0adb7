"""Policy folders: written, read, and refused when something is missing or does not fit."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rsd_fast.codec import CodecConfig, RFSQCodec
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models import checkpoints
from rsd_fast.models.checkpoints import PolicyParts, check_fit, load_policy, resolve_checkpoint, save_half
from rsd_fast.models.draft import DRAFTS, DraftConfig, make_draft
from rsd_fast.models.main import MainModel
from rsd_fast.models.presets import main_preset
from tests.policies import INSTRUCTIONS, tiny_policy


def write(policy: PolicyParts, folder: Path) -> Path:
    policy.codec.save_pretrained(folder / "codec")
    policy.main.save_pretrained(folder / "main")
    for kind in DRAFTS:
        tiny_policy(kind).draft.save_pretrained(folder / f"draft-{kind}")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny_policy(), tmp_path_factory.mktemp("policy"))


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(written, tmp_path / "policy")


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", [*DRAFTS, None])
def test_a_folder_is_read_as_it_was_written(written: Path, kind: str | None):
    policy, loaded = tiny_policy(kind or "regression"), load_policy(written, kind)
    assert same(policy.codec, loaded.codec) and loaded.codec.config == policy.codec.config
    assert torch.equal(loaded.codec.codebook, policy.codec.codebook)
    assert same(policy.main, loaded.main) and loaded.main.config == policy.main.config
    assert torch.equal(loaded.main.tokenizer(INSTRUCTIONS)[0], policy.main.tokenizer(INSTRUCTIONS)[0])
    assert not loaded.main.training and not loaded.codec.training
    if kind is None:
        assert loaded.draft is None
    else:
        assert same(policy.draft, loaded.draft) and loaded.draft.config == policy.draft.config


def test_nothing_is_printed_and_nothing_is_pickled(written: Path, capfd: pytest.CaptureFixture[str]):
    load_policy(written)
    assert capfd.readouterr().out == ""
    kinds = {path.suffix for path in written.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors", ".md"}


def test_half_precision_halves_parameters_and_leaves_statistics(tmp_path: Path):
    main = tiny_policy().main
    main.proprio_normalizer.q99.fill_(1 / 3)
    before = {name: tensor.clone() for name, tensor in main.state_dict().items()}
    save_half(main, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    parameters = dict(main.named_parameters())
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in stored.items() if name in parameters)
    assert torch.equal(stored["proprio_normalizer.q99"], torch.full((8,), 1 / 3))
    loaded = MainModel.from_pretrained(tmp_path).state_dict()
    assert all(tensor.dtype == before[name].dtype for name, tensor in loaded.items())
    assert all(torch.equal(loaded[name], before[name].bfloat16().float()) for name in parameters)
    assert all(torch.equal(tensor, before[name]) for name, tensor in main.state_dict().items())


# ---- what is wrong with a folder


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "./nowhere"])
def test_nothing_there_is_said_with_what_there_is(name: str):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at '{name}'.*expected a folder.*robosuite-nano"):
        resolve_checkpoint(name)


def test_shipped_checkpoints_go_by_name_and_folders_by_path(tmp_path: Path):
    assert resolve_checkpoint() == resolve_checkpoint("robosuite-nano")
    assert (resolve_checkpoint() / "README.md").is_file()
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(str(tmp_path)) == tmp_path


def test_a_hub_id_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch):
    def offline(name: str):
        raise ConnectionError(f"cannot reach the hub for {name}")

    monkeypatch.setattr(checkpoints, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="no folder 'someone/policy', and the hub did not give it: cannot"):
        load_policy("someone/policy")


@pytest.mark.parametrize(
    "part", ["codec/config.json", "codec/model.safetensors", "main/config.json", "draft-regression/model.safetensors"]
)
def test_a_missing_part_is_named(folder: Path, part: str):
    (folder / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not a policy folder: {part} is missing"):
        load_policy(folder, "regression")
    model = {"codec": RFSQCodec, "main": MainModel}.get(part.split("/")[0])
    if model is not None:
        with pytest.raises(FileNotFoundError, match=f"no {Path(part).name} in .*save_pretrained writes"):
            model.from_pretrained(folder / part.split("/")[0])


def test_a_missing_tokenizer_is_named(folder: Path):
    (folder / "main" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        load_policy(folder)


def test_a_folder_may_recommend_how_its_drafts_are_verified(folder: Path):
    assert load_policy(folder).acceptance == {}
    told = {"rule": "distance(1)", "granularity": "layer", "theta": 0.9}
    (folder / "acceptance.json").write_text(json.dumps(told))
    assert load_policy(folder).acceptance == told
    engine = RSDInferenceEngine.from_pretrained(folder, device="cpu", theta=0.8)  # what is asked for comes on top
    assert {name: engine.describe()[name] for name in ("rule", "granularity", "theta", "keep")} == {
        **told,
        "theta": 0.8,
        "keep": "main",
    }


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"rule": "distance(1)", "theta": 1.5}, r"got theta 1\.5, expected a share in \(0, 1\] in .*acceptance\.json"),
        ({"rule": "nearly"}, r"got rule 'nearly', expected exact, .* in .*acceptance\.json"),
        ({"granularity": "chunk"}, "got granularity 'chunk'"),
        ({"mode": "rsd"}, r"got mode in .*acceptance\.json, expected some of rule, granularity, theta, keep"),
        ({"theta": "0.9"}, r"acceptance\.json"),
        ({"rule": 1}, r"acceptance\.json"),
        ([], r"acceptance\.json holds a list"),
    ],
)
def test_a_recommendation_that_cannot_be_followed_is_refused(folder: Path, told: object, message: str):
    (folder / "acceptance.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=message):
        load_policy(folder)


def test_a_draft_that_is_not_there_is_asked_for_by_its_folder(folder: Path):
    shutil.rmtree(folder / "draft-coarse")
    assert load_policy(folder, "regression").draft is not None
    with pytest.raises(FileNotFoundError, match=r"draft-coarse/config\.json is missing"):
        load_policy(folder, "coarse")
    with pytest.raises(ValueError, match="got draft 'huge', expected one of"):
        load_policy(folder, "huge")


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped", "cut"])
def test_weights_that_are_not_the_model_s_are_refused(folder: Path, change: str):
    """None of them may load with some weights as they were initialised."""
    path = folder / "main" / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["backbone.norm.weight"]
    elif change == "unexpected":
        weights["other"] = torch.zeros(1)
    elif change == "reshaped":
        weights["backbone.norm.weight"] = torch.zeros(7)
    save_file(weights, path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"main/model\.safetensors does not hold a MainModel of its config\.json"):
        load_policy(folder)


def test_a_pickle_in_place_of_weights_is_never_opened(folder: Path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    weights = folder / "main" / "model.safetensors"
    payload = pickle.dumps(Bomb())
    weights.unlink()
    (folder / "main" / "pytorch_model.bin").write_bytes(payload)
    with pytest.raises(FileNotFoundError, match=r"main/model\.safetensors is missing"):
        load_policy(folder)
    weights.write_bytes(payload)
    with pytest.raises(ValueError, match="does not hold a MainModel"):
        load_policy(folder)


def test_a_configuration_of_another_size_is_refused(folder: Path):
    path = folder / "codec" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"levels": 1}))
    with pytest.raises(ValueError, match="got layers 3 and levels 1"):
        load_policy(folder)


# ---- parts that do not fit together


def test_parts_of_another_code_or_chunk_are_refused():
    policy = tiny_policy()
    other = RFSQCodec(CodecConfig(layers=4))
    with pytest.raises(ValueError, match=r"main model predicts .*'layers': 3.* codec defines .*'layers': 4"):
        check_fit(PolicyParts(other, policy.main, None))
    longer = MainModel(main_preset("tiny", policy.codec.config, steps=6))
    with pytest.raises(ValueError, match=r"draft predicts .*steps=4.* main model .*steps=6"):
        check_fit(PolicyParts(policy.codec, longer, policy.draft))
    head = policy.main.config.head
    wide = make_draft(DraftConfig(prefix_width=64, width=32, heads=1, head=head))
    with pytest.raises(ValueError, match=r"reads hidden states 64 wide, but the main model's are 32 wide"):
        check_fit(PolicyParts(policy.codec, policy.main, wide))


def test_folders_of_two_policies_are_not_mixed(folder: Path):
    shutil.rmtree(folder / "codec")
    RFSQCodec(CodecConfig(levels=7)).save_pretrained(folder / "codec")
    with pytest.raises(ValueError, match=r"'levels': 5.* codec defines .*'levels': 7"):
        load_policy(folder)
