"""The files of an OpenVLA or OpenVLA-OFT folder, found and opened, none of them read whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from rsd_fast.models.formats import Shards, TorchFile, read_json, read_torch
from rsd_fast.models.prompt import read_tokenizer

_HUB_FILES = ["*.json", "*.safetensors", "*.pt"]
# Parts that OpenVLA-OFT can be trained with and that this package has not.
_UNSUPPORTED = {
    "noisy_action_projector": "a diffusion head",
    "vision_backbone": "FiLM layers in its featurisers",
}


@dataclass
class OpenVLAFolder:
    """What `from_openvla` reads.

    Attributes:
        path: of the folder.
        config: `config.json`.
        preprocessor: `preprocessor_config.json`.
        tokenizer: the checkpoint's own.
        shards: the safetensors.
        action_head: OpenVLA-OFT's regression head, where there is one.
        proprio_projector: of OpenVLA-OFT, where there is one.
    """

    path: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    tokenizer: Tokenizer
    shards: Shards
    action_head: TorchFile | None
    proprio_projector: TorchFile | None

    @classmethod
    def open(cls, path_or_hub_id: str | Path) -> OpenVLAFolder:
        """A folder, or `owner/name` on the hub (downloaded).

        Raises:
            FileNotFoundError: the folder or a file of it is missing.
            ValueError: a file is not what its name says, or of a kind that is not supported.
        """
        path = _local(path_or_hub_id)
        config = read_json(path / "config.json")
        for part, what in _UNSUPPORTED.items():
            if files := sorted(path.glob(f"{part}--*.pt")):
                raise ValueError(f"{files[0]}: this checkpoint has {what}, which is not supported")
        return cls(
            path=path,
            config=config,
            preprocessor=read_json(path / "preprocessor_config.json"),
            tokenizer=read_tokenizer(path),
            shards=Shards(path),
            action_head=_component(path, "action_head"),
            proprio_projector=_component(path, "proprio_projector"),
        )

    @property
    def is_oft(self) -> bool:
        """Whether it was fine-tuned as OpenVLA-OFT: both directions of attention, two cameras, crops."""
        return self.action_head is not None or self.proprio_projector is not None


def _component(folder: Path, name: str) -> TorchFile | None:
    files = sorted(folder.glob(f"{name}--*_checkpoint.pt"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds {', '.join(file.name for file in files)}; leave the one that is meant")
    return read_torch(files[0]) if files else None


def _local(path_or_hub_id: str | Path) -> Path:
    name = str(path_or_hub_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no folder {name!r}; expected an OpenVLA folder or a hub id (owner/name)")
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub raises some ten kinds, none of which says what to do
        raise FileNotFoundError(f"no folder {name!r}, and the hub did not give it: {error}") from error
