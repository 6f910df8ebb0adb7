"""`rsd-fast convert`: the files users have -> a policy folder of ours, a shard in memory at a time."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from rsd_fast.models.checkpoints import save_half
from rsd_fast.models.convert_config import ConvertConfig
from rsd_fast.models.formats import INDEX, SINGLE
from rsd_fast.models.loading import OpenVLAOptions, PolicySource, open_openvla
from rsd_fast.progress import progress_bar

SHARD_BYTES = 2 << 30


def run(config: ConvertConfig) -> None:
    """Checks the files, then writes the folder.

    Raises:
        FileExistsError: the folder is there already.
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be, or files do not fit together.
    """
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists already; choose another --out")
    console = Console(stderr=True)
    options = {field.name: getattr(config, field.name) for field in fields(OpenVLAOptions)}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        source = open_openvla(
            config.checkpoint,
            rfsq_head=config.rfsq_head,
            draft=config.draft,
            rfsq=config.rfsq,
            unnorm_key=config.unnorm_key,
            options=OpenVLAOptions(**options),
        )
    for note in notes:
        console.print(f"note: {note.message}", highlight=False)
    partial = config.out.with_name(f"{config.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was stopped
    write_policy(source, partial)
    partial.rename(config.out)
    console.print(f"wrote {config.out}", highlight=False)


def write_policy(source: PolicySource, out: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes codec, main model (bfloat16) and draft, in the layout of `rsd_fast.models.checkpoints`."""
    parts = source.parts
    main = out / "main"
    main.mkdir(parents=True)
    (main / "config.json").write_text(json.dumps(asdict(parts.main.config), indent=2, sort_keys=True) + "\n")
    assert parts.main.tokenizer is not None
    parts.main.tokenizer.save(main)
    weights = dict(parts.main.named_parameters())
    statistics = {name: tensor for name, tensor in parts.main.state_dict().items() if name not in weights}
    with progress_bar(f"converting {source.name}", source.count) as advance:

        def halves() -> Iterable[tuple[str, Tensor]]:
            yield from statistics.items()
            for name, tensor in source.tensors():
                yield name, tensor.detach().to(torch.bfloat16, copy=True)
                advance(1)

        write_shards(halves(), main, shard_bytes)
    parts.codec.save_pretrained(out / "codec")
    if parts.draft is not None:
        save_half(parts.draft, out / f"draft-{parts.draft.config.kind}")


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    """Safetensors of at most `shard_bytes` (or one tensor) each, with an index; one file where that is enough."""
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = held = 0

    def write() -> None:
        save_file(waiting, folder / f"{len(shards)}.safetensors", {"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and held + tensor.nbytes > shard_bytes:
            write()
            held = 0
        waiting[name] = tensor
        held += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
