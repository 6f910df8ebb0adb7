"""Saving and loading of models: huggingface_hub's mixin, made strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"

T = TypeVar("T", bound="Pretrained")


class Pretrained(PyTorchModelHubMixin):
    """`save_pretrained` and `from_pretrained`: `config.json` and `model.safetensors`, in a folder or on the hub.

    The mixin leaves a weight that the file lacks as it was initialised, and unpickles where there is no safetensors
    file. Here the first is an error, and the second does not happen.
    """

    @classmethod
    def _from_pretrained(
        cls: type[T],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **settings: Any,
    ) -> T:
        """See `from_pretrained`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the weights are not those of this model.
        """
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=["*.json", WEIGHTS],
                )
            )
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}; save_pretrained writes {CONFIG} and {WEIGHTS}")
        model = cls(**settings)
        module = cast(nn.Module, model)
        try:
            load_model(module, folder / WEIGHTS, strict=True)
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder / WEIGHTS} does not hold a {cls.__name__} of its {CONFIG}: {error}") from error
        model._load_more(folder)
        module.eval()
        return model

    def _load_more(self, folder: Path) -> None:
        """What a model keeps beside its weights."""
