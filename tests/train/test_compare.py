"""`rsd-fast train compare`: codecs as text, policies that act, one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsd_fast.cli import main, parse
from rsd_fast.codec import PRESETS, CodecConfig
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import load_policy
from rsd_fast.train import compare
from rsd_fast.train.config import CodecComparison
from rsd_fast.train.dataset import DemoData
from rsd_fast.train.variants import codec_config, parse_variant

TINY = """
preset = "tiny"
chunk = 4
held_out = 0.25
steps = 6
draft_steps = 6
eval_every = 3
batch = 16
warmup = 2
ema = 0.9
eval_samples = 24
final_samples = 24
workers = 1
"""


def test_variants_are_presets_and_what_differs():
    assert {name: codec_config(name) for name in PRESETS} == PRESETS
    changed = codec_config("redundant:layers=4,levels=7,redundancy=1.6,normalization=none")
    assert changed == CodecConfig(layers=4, levels=7, redundancy=1.6, normalization="none")
    bare = codec_config("original:autoencoder=off", action_dims=9)
    assert (bare.layers, bare.autoencoder_width, bare.latent_dims, bare.action_dims) == (8, 0, 9, 9)
    behind = codec_config("redundant:autoencoder=on,latent_dims=12")
    assert (behind.layers, behind.autoencoder_width, behind.latent_dims) == (3, 64, 12)
    variant = parse_variant("redundant:perturb=0,redundancy=1")
    assert variant.name == "redundant-perturb-0-redundancy-1"
    assert (variant.codec, variant.training) == ("redundant:redundancy=1", {"perturb": 0.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modern", r"got codec 'modern', expected one of \['original', 'redundant'\]"),
        ("redundant:depth=3", r"got 'depth=3' .* expected SETTING=VALUE with .*'layers'"),
        ("redundant:", "got ''"),
        ("redundant:layers=3,layers=4", "none twice"),
        ("redundant:layers=many", "got layers=many .* expected a whole number"),
        ("redundant:redundancy=big", "got redundancy=big .* expected a number"),
        ("original:autoencoder=maybe", "expected on or off"),
        ("redundant:normalization=norm", "got normalization 'norm'.* in codec"),
        ("redundant:redundancy=9", r"got redundancy 9\.0, expected 0\.800 to 4"),
        ("redundant:perturb=2", r"got perturb 2\.0 .* expected a probability"),
    ],
)
def test_what_is_no_codec_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_variant(text)


@pytest.mark.parametrize("command", ["codec", "all"])
def test_a_wrong_codec_is_refused_before_anything_is_read(command: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", command, "--demos", "nowhere", "--codec", "redundant:levels=1"]) == 2
    assert "got layers 3 and levels 1" in capsys.readouterr().err


def test_a_codec_alone_has_no_training_settings():
    with pytest.raises(ValueError, match="got 'perturb=0'"):
        codec_config("redundant:perturb=0")


@pytest.fixture(scope="module")
def config(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> CodecComparison:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "tiny.toml").write_text(TINY)
    words = ["train", "compare", "--demos", str(demos), "--out", str(folder / "out"), "--device", "cpu"]
    words += ["--config", str(folder / "tiny.toml"), "--minutes", "5"]
    return parse([*words, "--variants", "redundant:levels=7,perturb=0", "redundant:layers=2"])


@pytest.fixture(scope="module")
def rows(config: CodecComparison, data: DemoData) -> list[dict]:
    return compare.run(config, data)


def plain(rows: list[dict]) -> list[dict]:
    return json.loads(json.dumps(rows))


def test_the_table_has_every_variant(config: CodecComparison, rows: list[dict]):
    assert [row["variant"] for row in rows] == list(config.variants)
    assert json.loads((config.out / "compare.json").read_text()) == {"rows": plain(rows), "failed": {}}
    for row, layers, perturb in zip(rows, (3, 2), (0.0, 0.3), strict=True):
        assert row["perturb"] == perturb
        assert (
            row["codec"]["codec"]["layers"] == len(row["by_depth"]) == len(row["offline"]["main"]["accuracy"]) == layers
        )
        assert row["training"]["main"]["steps"] == row["training"]["draft"]["steps"] == 6
        sequential = compare.row_of(row["offline"], "sequential")
        assert row["by_depth"][-1] == pytest.approx(sequential["mae"], rel=1e-5)
        assert 1 <= row["original_rule"]["passes"] <= layers
        assert compare.row_of(row["offline"], "parallel")["passes"] == 1
    text = (config.out / "compare.md").read_text()
    assert "| `redundant:levels=7,perturb=0` | 3 x 7, 2 |" in text and "| `redundant:layers=2` | 2 x 5, 2 |" in text


def test_its_policies_act(rows: list[dict], data: DemoData):
    frame = int(data.frames(False, 4)[0])
    cameras = dict(zip(("full_image", "wrist_image"), data.images[frame].numpy(), strict=True))
    for row in rows:
        assert load_policy(row["policy"], "regression").codec.config.levels == row["codec"]["codec"]["levels"]
        engine = RSDInferenceEngine.from_pretrained(row["policy"], mode="rsd", draft="regression", device="cpu")
        actions, _ = engine.generate_action({**cameras, "state": data.proprio[frame].numpy()}, data.instructions[0])
        assert actions.shape == (4, 7)


def test_a_second_run_trains_nothing_and_a_failure_loses_nothing(
    config: CodecComparison, rows: list[dict], data: DemoData, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setattr("rsd_fast.train.loop.Run.step", lambda *_: pytest.fail("trained again"))
    assert plain(compare.run(config, data)) == plain(rows)
    assert capsys.readouterr().err.count("complete since step 6") == 4
    state = Path(rows[0]["policy"] + "-training") / "main" / "last.safetensors"
    state.write_bytes(b"broken")
    with pytest.raises(RuntimeError, match=r"1 of 2 variants failed \(redundant:levels=7,perturb=0: "):
        compare.run(config, data)
    written = json.loads((config.out / "compare.json").read_text())
    assert written["rows"] == plain(rows[1:]) and list(written["failed"]) == ["redundant:levels=7,perturb=0"]
    assert "Failed: `redundant:levels=7,perturb=0`" in (config.out / "compare.md").read_text()


def test_one_variant_twice_is_an_error(config: CodecComparison, data: DemoData):
    with pytest.raises(ValueError, match="expected none twice"):
        compare.run(CodecComparison(variants=("redundant", "redundant"), out=config.out), data)
