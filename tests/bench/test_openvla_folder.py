"""The OpenVLA folder that the bench writes, against transformers' networks, and what is measured of loading it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bench.gpu_openvla import main as gpu_openvla
from bench.openvla_folder import llama_tokenizer, main, published_shapes, split
from bench.openvla_load import HostPeak, measure_in_fresh_process
from rsd_fast.models.formats import INDEX, Shards
from rsd_fast.models.loading import from_openvla
from rsd_fast.models.presets import OPENVLA_PRESETS
from rsd_fast.models.prompt import PromptTokenizer
from tests.models.openvla_files import make_networks, openvla_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "openvla"
    main([str(out), "--preset", "openvla-tiny", "--device", "cpu", "--shards", "3"])
    return out


def test_names_and_shapes_are_those_of_transformers_networks(folder: Path) -> None:
    """But for the attention pooling, of which the other writer has only a sample."""
    wanted = {name: tuple(tensor.shape) for name, tensor in openvla_tensors(make_networks()).items()}
    found = Shards(folder).shapes
    assert {n: s for n, s in found.items() if "attn_pool" not in n} == {
        n: s for n, s in wanted.items() if "attn_pool" not in n
    }
    pooling = {name for name in found if "attn_pool" in name}
    assert {name for name in wanted if "attn_pool" in name} < pooling
    assert all(name.startswith("vision_backbone.fused_featurizer.attn_pool.") for name in pooling)


def test_shards_are_bfloat16_of_like_sizes_and_indexed(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    size = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}
            values = [tensors.get_tensor(name) for name in tensors.keys()]  # noqa: SIM118  no dictionary
        assert all(value.dtype == torch.bfloat16 and value.isfinite().all() for value in values)
        size += sum(value.nbytes for value in values)
    assert index["metadata"]["total_size"] == size
    assert max(file.stat().st_size for file in files) < 0.5 * size


def test_from_openvla_takes_it(folder: Path) -> None:
    parts = from_openvla(folder, device="cpu", dtype=torch.bfloat16)
    layer = parts.main.state_dict()["backbone.layers.1.mlp.down_proj.weight"]
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    with safe_open(folder / json.loads((folder / INDEX).read_text())["weight_map"][name], framework="pt") as tensors:
        assert torch.equal(layer, tensors.get_tensor(name))
    tokenizer = parts.main.tokenizer
    assert isinstance(tokenizer, PromptTokenizer)
    text = tokenizer.ids("Pick up the black bowl")[: -tokenizer.prompt.extra_tokens]
    assert text[0] == 1 and text[-1] == 3 and len(text) < 20


def test_the_published_size_is_fifteen_gigabytes_in_even_shards() -> None:
    shapes = published_shapes(OPENVLA_PRESETS["openvla-7b"])
    sizes = [2 * sum(torch.Size(shapes[name]).numel() for name in names) for names in split(shapes, 4)]
    assert sum(sizes) == pytest.approx(15.08e9, rel=1e-3)
    assert max(sizes) < 1.1 * min(sizes)
    assert shapes["vision_backbone.featurizer.blocks.23.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["vision_backbone.fused_featurizer.blocks.26.mlp.fc1.weight"] == (4304, 1152)
    assert shapes["language_model.lm_head.weight"] == (32064, 4096)


def test_the_tokenizer_has_llamas_ids() -> None:
    prompt = OPENVLA_PRESETS["openvla-7b"].prompt
    assert prompt is not None
    tokenizer = llama_tokenizer(prompt)
    ids = [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "▁", "<PAD>")]
    assert ids == [0, 1, 2, 29871, 32000] and tokenizer.get_vocab_size() == 32001


def test_more_shards_than_tensors_and_folders_with_weights_are_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match="got 9 shards"):
        split({"a": (2,), "b": (2,)}, 9)
    with pytest.raises(ValueError, match="already"):
        main([str(folder), "--preset", "openvla-tiny", "--device", "cpu"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident memory from /proc")
def test_the_bench_reports_time_and_memory_of_loading(folder: Path, tmp_path: Path) -> None:
    where = ["--out", str(tmp_path), "--preset", "openvla-tiny", "--device", "cpu"]
    gpu_openvla([*where, "--only", "tail", "--quick", "--seconds", "0.02", "--load", str(folder)])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["section"] == "load"]
    shards = [file.stat().st_size for file in folder.glob("*.safetensors")]
    assert row["seconds"] > 0 and row["largest_shard_bytes"] == max(shards)
    assert row["disk_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert row["allowed_bytes"] == max(shards) + 2e9 + row["weights_bytes"]  # on the CPU they stay on the host
    assert 0 < row["host_anonymous_peak_growth_bytes"] <= row["host_peak_growth_bytes"] < 1e9
    assert row["within"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident memory from /proc")
def test_a_peak_within_the_block_is_seen_and_one_before_it_is_not() -> None:
    torch.ones(2**28, dtype=torch.uint8)
    with HostPeak() as host:
        block = torch.ones(2**27, dtype=torch.uint8)
        latest = time.monotonic() + 10  # on a busy machine the sampling thread may have to wait
        while (host.growth("VmRSS") or 0) < 0.9 * 2**27 and time.monotonic() < latest:
            time.sleep(0.01)
        del block
    grown = host.growth("VmRSS")
    assert grown is not None and 0.9 * 2**27 < grown < 1.5 * 2**27
    assert host.growth("NoSuchLine") is None


def test_a_missing_folder_is_an_error_of_the_process_that_loads() -> None:
    with pytest.raises(RuntimeError, match="no folder /nowhere/at/all"):
        measure_in_fresh_process("/nowhere/at/all", "cpu")
