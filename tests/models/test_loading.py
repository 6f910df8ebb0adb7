"""`from_openvla`: what a folder says, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rsd_fast.models.formats import INDEX
from rsd_fast.models.loading import from_openvla
from tests.models.openvla_files import (
    INSTRUCTION,
    KEY,
    STEPS,
    edit,
    llama_tokenizer,
    statistics,
    write_json,
)
from tests.models.original_files import Autoencoder, Draft, Head, make, parts, write, write_everything
from tests.models.test_openvla import observe


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("files"))


@pytest.fixture
def oft(files: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(files / "oft", tmp_path / "oft"))


# ---- what the folder says


def test_an_oft_folder_is_recognised(files: Path):
    config = from_openvla(files / "oft", steps=STEPS, device="cpu").main.config
    assert (config.cameras, config.proprio, config.backbone.causal, config.images.crop) == (2, True, False, 0.9)
    assert config.heads == ("discrete", "l1") and config.backbone.rms_eps == 1e-6


def test_what_a_folder_does_not_say_can_be_said(files: Path):
    policy = from_openvla(
        files / "oft", steps=STEPS, device="cpu", cameras=1, causal=True, crop=False, new_heads=("hierarchical",)
    )
    config = policy.main.config
    assert (config.cameras, config.backbone.causal, config.images.crop) == (1, True, 1.0)
    prefix = policy.main.prefill(observe(policy.main, [INSTRUCTION]))
    logits = policy.main.decode(prefix, torch.zeros(1, 3, STEPS, 7).int())
    assert logits.shape == (1, 3, STEPS, 7, 5) and logits.isfinite().all()
    with pytest.raises(ValueError, match=r"got new_heads \['oracle'\], expected some of \['hierarchical', "):
        from_openvla(files / "oft", device="cpu", new_heads=("oracle",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_get_the_dtype_asked_for_and_statistics_keep_theirs(files: Path, dtype: torch.dtype):
    main = from_openvla(files / "oft", steps=STEPS, device="cpu", dtype=dtype).main
    assert {parameter.dtype for parameter in main.parameters()} == {dtype}
    assert main.proprio_normalizer.q01.dtype == torch.float32
    assert main.proprio_normalizer.q01.tolist() == statistics()["proprio"]["q01"]


def test_loaded_weights_do_not_hang_on_the_files(files: Path, oft: Path):
    main = from_openvla(oft, steps=STEPS, device="cpu").main
    before = main.backbone.layers[0].self_attn.q_proj.weight.clone()
    for path in oft.glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(main.backbone.layers[0].self_attn.q_proj.weight, before)


@pytest.mark.parametrize(
    ("statistics_of", "asked", "found"),
    [
        ({KEY: statistics()}, None, KEY),
        ({KEY: statistics(), "b": statistics()}, KEY, KEY),
        ({KEY: statistics(), "b": statistics()}, "libero_spatial", KEY),
    ],
)
def test_statistics_are_found_by_name(oft: Path, statistics_of: dict, asked: str | None, found: str):
    write_json(oft / "dataset_statistics.json", statistics_of)
    codec = from_openvla(oft, unnorm_key=asked, steps=STEPS, device="cpu").codec
    assert np.allclose(codec.normalizer.q01, statistics_of[found]["action"]["q01"])


def test_statistics_of_config_json_serve_where_there_is_no_other_file(oft: Path):
    (oft / "dataset_statistics.json").unlink()
    codec = from_openvla(oft, unnorm_key="fractal", steps=STEPS, device="cpu").codec
    assert codec.normalizer.q01[0] == -2.0


# ---- what is refused


def reshard(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes the tensors, and the index with them."""

    def apply(folder: Path) -> None:
        tensors = {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}
        for path in [*folder.glob("*.safetensors"), folder / INDEX]:
            path.unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def torch_file(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = torch.load(folder / name, weights_only=True)
        change(content)
        torch.save(content, folder / name)

    return apply


def larger_vocabulary(folder: Path) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(400)])
    tokenizer.save(str(folder / "tokenizer.json"))


HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"
LAYER = "language_model.model.layers.1.mlp.up_proj.weight"

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json in"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "another model": (edit("config.json", lambda c: c.update(model_type="llava")), "model_type 'llava'"),
    "no text_config": (edit("config.json", lambda c: c.pop("text_config")), "text_config None"),
    "grouped queries": (
        edit("config.json", lambda c: c["text_config"].update(num_key_value_heads=1)),
        r"\{'num_key_value_heads': 1\}.* not supported",
    ),
    "unknown featuriser": (
        edit("config.json", lambda c: c.update(timm_model_ids=["resnet50", "vit_tiny_patch14_siglip"])),
        r"names featurisers \['resnet50'\], expected some of",
    ),
    "letterbox": (edit("config.json", lambda c: c.update(image_resize_strategy="letterbox")), "'letterbox'"),
    "no preprocessor": (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    "half a preprocessor": (
        edit("preprocessor_config.json", lambda c: c.update(tvf_normalize_params=[{"mean": [0.5], "std": [0.5]}])),
        "expected three numbers a featuriser",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json in"),
    "tokenizer is none": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer"),
    "vocabulary too large": (larger_vocabulary, "ids up to 500, but the model embeds 448"),
    "vocabulary of another size": (
        edit("config.json", lambda c: c["text_config"].update(vocab_size=512)),
        r"embed_tokens.weight \(got \[448, 64\], expected \[512, 64\]\)",
    ),
    "no such statistics": (
        edit("dataset_statistics.json", lambda c: c.update(other=c.pop(KEY), more={})),
        f"no statistics of '{KEY}'; it has more, other",
    ),
    "no quantiles": (
        edit("dataset_statistics.json", lambda c: c[KEY]["action"].pop("q99")),
        "no q01 and q99 of 'action'",
    ),
    "six dimensions": (
        edit("dataset_statistics.json", lambda c: c[KEY]["action"].update(q01=[0.0] * 6)),
        "statistics of 'action' .* do not fit",
    ),
    "no proprio statistics": (edit("dataset_statistics.json", lambda c: c[KEY].pop("proprio")), "of 'proprio'"),
    "a weight is missing": (reshard(lambda t: t.pop(LAYER)), f"1 missing: {LAYER}"),
    "a weight too many": (
        reshard(lambda t: t.update({"language_model.x": torch.ones(1)})),
        "1 unexpected: language_model.x",
    ),
    "a weight of another shape": (
        reshard(lambda t: t.update({LAYER: torch.ones(3, 4)})),
        rf"1 of another shape: {LAYER} \(got \[3, 4\], expected \[96, 64\]\)",
    ),
    "a deeper featuriser": (
        reshard(lambda t: t.update({"vision_backbone.featurizer.blocks.3.norm1.weight": torch.ones(32)})),
        "1 unexpected: vision_backbone.featurizer.blocks.3.norm1.weight",
    ),
    "truncated shard": (
        lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"\x10" * 100),
        "model-00001-of-00002.safetensors is truncated",
    ),
    "lost shard": (
        lambda f: (f / "model-00001-of-00002.safetensors").unlink(),
        "is missing; the download is not complete",
    ),
    "projector key": (
        torch_file(PROPRIO, lambda c: c.pop("module.fc2.bias")),
        f"{PROPRIO} do not fit; 1 missing: fc2.bias",
    ),
    "head shape": (
        torch_file(HEAD, lambda c: c.update({"module.model.fc2.weight": torch.ones(14, 40)})),
        rf"{HEAD} do not fit; 1 of another shape: model.fc2.weight \(got \[14, 40\], expected \[7, 40\]\)",
    ),
    "head is another": (
        torch_file(HEAD, lambda c: c.clear() or c.update(x=torch.ones(1))),
        "is no L1 regression head: it holds x",
    ),
    "two heads": (lambda f: shutil.copy(f / HEAD, f / "action_head--9_checkpoint.pt"), "leave the one that is meant"),
    "FiLM": (lambda f: (f / "vision_backbone--9_checkpoint.pt").touch(), "FiLM layers in its featurisers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_every_fault_is_one_clear_error(oft: Path, what: str):
    breaks, message = BROKEN[what]
    breaks(oft)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_openvla(oft, unnorm_key=KEY, steps=STEPS, device="cpu")


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


def leaves(content: object, path: tuple = ()) -> list[tuple]:
    """Where a JSON object holds anything, inner objects and lists included."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(leaf for key, value in items for leaf in leaves(value, (*path, key)))]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["config.json", "preprocessor_config.json", "dataset_statistics.json"]))
def test_junk_anywhere_in_the_json_is_a_value_error_or_harmless(oft: Path, data: st.DataObject, name: str):
    original = (oft / name).read_text()
    content = {"": json.loads(original)}
    *way, last = data.draw(st.sampled_from([("", *path) for path in leaves(content[""])]))
    place = content
    for key in way:
        place = place[key]
    place[last] = data.draw(JUNK)
    try:
        (oft / name).write_text(json.dumps(content[""]))
        with contextlib.suppress(ValueError, FileNotFoundError):
            from_openvla(oft, unnorm_key=KEY, steps=STEPS, device="cpu")
    finally:
        (oft / name).write_text(original)


def other(files: Path, network: type, *arguments: object, **settings: object) -> Path:
    """A file of another size."""
    config = {"use_layernorm": False} if network is Autoencoder else {}
    return write(files / "other.pt", make(network, *arguments, **settings), **config)


PARTS: dict[str, tuple[Callable[[Path], dict[str, object]], str]] = {
    "head without codec": (lambda f: {"rfsq_head": f / "head.pt"}, "needs the RFSQ autoencoder"),
    "codec for a head": (
        lambda f: {**parts(f), "rfsq_head": f / "rfsq.pt"},
        r"none of the RFSQ heads: no .* in decoder\.0\.bias",
    ),
    "head for a codec": (
        lambda f: {**parts(f), "rfsq": f / "head.pt"},
        r"is no RFSQ autoencoder: it holds feature_proj\.0\.bias",
    ),
    "codec for a draft": (
        lambda f: {**parts(f), "draft": f / "rfsq.pt"},
        r"is none of the draft models: decoder\.0\.bias",
    ),
    "head of another codec": (
        lambda f: {**parts(f), "rfsq": other(f, Autoencoder, dims=5)},
        "168 logits, but the codec .* multiple of 5 x 7",
    ),
    "head for another width": (
        lambda f: {**parts(f), "rfsq_head": other(f, Head, "c", width=80)},
        r"read as the trunk head\) do not fit; .*: feature_proj\.0\.weight \(got \[20, 80\], expected \[20, 64\]\)",
    ),
    "draft for another width": (
        lambda f: {**parts(f), "draft": other(f, Draft, True, width=80)},
        r"1 of another shape: input_projection\.weight \(got \[16, 80\], expected \[16, 64\]\)",
    ),
    "draft without codec": (lambda f: {"draft": f / "draft.pt"}, "read as a draft of 3 layers"),
    "no such file": (lambda f: {**parts(f), "draft": f / "nothing.pt"}, r"no file .*nothing\.pt"),
}


@pytest.mark.parametrize("what", PARTS)
def test_every_part_that_does_not_fit_is_one_clear_error(files: Path, what: str):
    make_settings, message = PARTS[what]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_openvla(files / "oft", device="cpu", **make_settings(files))  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_says_what_was_expected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="expected an OpenVLA folder or a hub id"):
        from_openvla(tmp_path / "nothing", device="cpu")
