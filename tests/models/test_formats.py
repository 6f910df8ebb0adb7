"""Files that nobody vouches for: one clear error each, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rsd_fast.models.formats import INDEX, Shards, read_json, read_torch, require_match
from tests.models.openvla_files import write_json, write_shards

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(4)}


class Marker:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# ---- PyTorch files


@pytest.mark.parametrize("wrap", [None, "model", "model_state_dict", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_found_bare_or_wrapped_without_the_prefix_of_ddp(tmp_path: Path, wrap: str | None, prefix: str):
    state = {prefix + name: tensor for name, tensor in TENSORS.items()}
    torch.save({wrap: state, "config": {"layers": 8}, "epoch": 3} if wrap else state, tmp_path / "x.pt")
    file = read_torch(tmp_path / "x.pt")
    assert set(file.tensors) == set(TENSORS)
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert file.config == ({"layers": 8} if wrap else {})


def test_the_old_format_without_zip_is_read_too(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_torch(tmp_path / "x.pt").tensors["a.weight"], TENSORS["a.weight"])


@pytest.mark.parametrize("how", ["torch.save", "pickle", "pickle in zip"])
def test_code_in_a_file_does_not_run(tmp_path: Path, how: str):
    path, mark = tmp_path / "x.pt", tmp_path / "executed"
    evil = {"model_state_dict": dict(TENSORS), "config": Marker(mark)}
    if how == "torch.save":
        torch.save(evil, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(evil["config"], protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(evil["config"], protocol=2))
            archive.writestr("x/version", "3")
            archive.writestr("x/byteorder", "little")
    with pytest.raises(ValueError, match=r"nothing in it was run: it asks for posix\.mkdir"):
        read_torch(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Marker(mark)))
    assert mark.exists(), "the marker must work where pickles do run"


def test_objects_beside_the_tensors_name_what_to_do(tmp_path: Path):
    torch.save({"model_state_dict": TENSORS, "val_accuracy": np.float64(0.9)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"asks for numpy.*scalar.*save them alone with torch.save"):
        read_torch(tmp_path / "x.pt")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), old=st.booleans())
def test_a_truncated_file_is_one_error(tmp_path: Path, share: float, old: bool):
    path = tmp_path / "x.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=not old)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"x\.pt (is truncated or no PyTorch file|was not opened)"):
        read_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, expected a state dict"),
        ({}, "nothing in it is no tensor"),
        ({"model_state_dict": {"a": torch.ones(2), "steps": 3}}, "steps in it is no tensor"),
        ({"a": torch.ones(2, dtype=torch.int32)}, "a in it is no tensor of numbers"),
        ({"a": torch.ones(2).to_sparse()}, "a in it is no tensor of numbers"),
        ({"a": torch.ones(2), "module.a": torch.ones(2)}, "with and without the prefix 'module.'"),
    ],
)
def test_what_is_no_state_dict_says_so(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_torch(tmp_path / "x.pt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.pt"):
        read_torch(tmp_path / "x.pt")


# ---- safetensors


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_stream_every_tensor_once(tmp_path: Path, count: int):
    write_shards(tmp_path, TENSORS, count)
    shards = Shards(tmp_path)
    assert shards.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    streamed = [(name, tensor.clone()) for name, tensor in shards.stream(TENSORS)]
    assert sorted(name for name, _ in streamed) == sorted(TENSORS)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in streamed)
    assert [name for name, _ in shards.stream({"b.weight"})] == ["b.weight"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_truncated_shard_is_one_error_before_any_weight_is_read(tmp_path: Path, share: float):
    write_shards(tmp_path, TENSORS, 2)
    path = tmp_path / "model-00002-of-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is truncated or no safetensors file"):
        Shards(tmp_path)


def index(tmp_path: Path, **changes: object) -> None:
    write_shards(tmp_path, TENSORS, 2)
    content = read_json(tmp_path / INDEX)
    content["weight_map"].update(changes)
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file is not None}
    write_json(tmp_path / INDEX, content)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"c": "model-00001-of-00002.safetensors"}, ValueError, "does not describe its shards: c"),
        ({"a.bias": None}, ValueError, "does not describe its shards: a.bias"),
        ({"a.bias": "../model.safetensors"}, ValueError, "expected a file beside it"),
        ({"a.bias": "/etc/passwd"}, ValueError, "expected a file beside it"),
        ({"a.bias": 3}, ValueError, "expected a file beside it"),
        ({"c": "other.safetensors"}, FileNotFoundError, "other.safetensors is missing"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, changes: dict, error: type[Exception], message: str):
    index(tmp_path, **changes)
    with pytest.raises(error, match=message):
        Shards(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "\xff"])
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, content: str):
    write_shards(tmp_path, TENSORS, 2)
    (tmp_path / INDEX).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        Shards(tmp_path)


def test_quantised_weights_are_refused_by_name(tmp_path: Path):
    save_file({"a": torch.ones(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds 'a' as I8, expected floating point"):
        Shards(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path):
    (tmp_path / "lora_adapter").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors\.index\.json and .*lora_adapter"):
        Shards(tmp_path)


# ---- shapes


def test_one_error_lists_everything_that_does_not_fit():
    expected = {"same": (2,), "gone": (3,), "wide": (4, 5)}
    with pytest.raises(ValueError) as error:
        require_match(expected, {"same": (2,), "wide": (4, 6), "new": (1,)}, "the file")
    message = str(error.value)
    for part in ("the file", "1 missing: gone", "1 unexpected: new", "wide (got [4, 6], expected [4, 5])"):
        assert part in message
    with pytest.raises(ValueError, match=r"20 missing: .* and 12 more"):
        require_match({f"n{i}": (1,) for i in range(20)}, {}, "x")
    require_match(expected, expected, "x")
