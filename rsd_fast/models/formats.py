"""Reading files that nobody vouches for: tensors and JSON, and nothing that could run.

Safetensors, in one file or in shards with an index, and PyTorch's own files, read with `weights_only=True`: a pickle
that asks for anything but tensors and plain containers is refused before it does anything. Every file that is not what
it should be is one ValueError that names it and says what is wrong.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Shape = tuple[int, ...]

_PLAIN = {"F64", "F32", "F16", "BF16", "BOOL"}
_LISTED = 8  # names of each kind in an error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors both are
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


# ---- safetensors


class Shards:
    """The tensors of a folder's safetensors, known by their headers and read one at a time.

    Args:
        folder: with `model.safetensors`, or with shards and their index.

    Attributes:
        shapes: by name, of all tensors.

    Raises:
        FileNotFoundError: the folder has no safetensors, or lacks a shard.
        ValueError: a file is truncated or no safetensors, holds quantised weights, or is not what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, Shape] = {}
        self._files: dict[Path, list[str]] = {}
        expected = self._index()
        for file in sorted(set(expected.values())) if expected else [SINGLE]:
            self._read_header(folder / file)
        if expected:
            found = {name: file.name for file, names in self._files.items() for name in names}
            if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
                raise ValueError(f"{folder / INDEX} does not describe its shards: {_list(wrong)}")

    def _index(self) -> dict[str, str]:
        if not (self.folder / INDEX).is_file():
            if not (self.folder / SINGLE).is_file():
                files = sorted(path.name for path in self.folder.iterdir())
                raise FileNotFoundError(f"no {INDEX} and no {SINGLE} in {self.folder}; it holds {_list(files)}")
            return {}
        weight_map = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{self.folder / INDEX} has no weight_map")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(f"{self.folder / INDEX} maps {name!r} to {file!r}, expected a file beside it")
        return weight_map

    def _read_header(self, file: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; the download is not complete")
        with _open(file) as tensors:
            names = list(tensors.offset_keys())
            for name in names:
                if name in self.shapes:
                    raise ValueError(f"{file} holds {name!r}, which another shard holds too")
                stored = tensors.get_slice(name)
                if stored.get_dtype() not in _PLAIN:
                    raise ValueError(f"{file} holds {name!r} as {stored.get_dtype()}, expected floating point numbers")
                self.shapes[name] = tuple(stored.get_shape())
            self._files[file] = names

    def stream(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Each wanted tensor on the CPU, shard by shard in the order of the files.

        A tensor is a view of the mapped file: take it elsewhere before asking for the next one, and no more than one
        shard is ever in memory.
        """
        for file, names in self._files.items():
            if any(name in wanted for name in names):
                with _open(file) as tensors:
                    for name in names:
                        if name in wanted:
                            yield name, tensors.get_tensor(name)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or no safetensors file: {error}") from error


# ---- PyTorch files


@dataclass
class TorchFile:
    """What a `.pt` file holds.

    Attributes:
        path: of the file.
        tensors: by name, without the prefix `module.` that distributed training leaves.
        config: the plain numbers and strings saved beside them, if any.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """By name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_torch(path: Path) -> TorchFile:
    """Reads a state dict, bare or wrapped as `model_state_dict`, `model` or `state_dict`, without running anything.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no PyTorch file, or holds Python objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters ends in an error
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it is no PyTorch file"
        raise ValueError(
            f"{path} was not opened, and nothing in it was run: {what}. Only tensors, numbers and strings are read; "
            "save them alone with torch.save({'model_state_dict': ..., 'config': ...}, path)"
        ) from error
    except Exception as error:  # a broken file makes torch.load raise some ten kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is truncated or no PyTorch file: {reason}") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> TorchFile:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict")
    config = content.get("config")
    for key in ("model_state_dict", "model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    strange = sorted(str(name) for name, value in content.items() if not _is_plain_tensor(value))
    if strange or not content:
        raise ValueError(f"{path} is not a state dict: {_list(strange) or 'nothing'} in it is no tensor of numbers")
    tensors = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise ValueError(f"{path} holds tensors with and without the prefix 'module.' under the same name")
    return TorchFile(path, tensors, config if isinstance(config, dict) else {})


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()


# ---- names and shapes


def require_match(expected: Mapping[str, Shape], found: Mapping[str, Shape], what: object) -> None:
    """Raises one ValueError that lists missing names, unexpected ones, and those of another shape."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    other = [
        f"{name} (got {list(found[name])}, expected {list(shape)})"
        for name, shape in sorted(expected.items())
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {kind}: {_list(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        if names
    ]
    if problems:
        raise ValueError(f"the weights in {what} do not fit; {'; '.join(problems)}")


def _list(names: Collection[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
