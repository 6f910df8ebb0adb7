"""Policy folders: codec, main model and draft models side by side.

    <folder>/README.md             model card
             codec/                config.json, model.safetensors
             main/                 config.json, model.safetensors, tokenizer.json
             draft-regression/     config.json, model.safetensors
             draft-coarse/         config.json, model.safetensors
             draft-original/       config.json, model.safetensors
             acceptance.json       optional: how its drafts are best verified

A large main model is in shards, with model.safetensors.index.json.

Weights are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import nn

from rsd_fast.acceptance import Acceptance, parse_rule
from rsd_fast.codec import RFSQCodec
from rsd_fast.models.draft import DRAFT_KINDS, load_draft
from rsd_fast.models.draft_base import DraftModel
from rsd_fast.models.formats import INDEX, SINGLE, Shards, read_json, require_match
from rsd_fast.models.main import MainConfig, MainModel
from rsd_fast.models.prompt import load_tokenizer
from rsd_fast.models.streaming import build_empty, choose_device, expected_shapes, fill
from rsd_fast.progress import progress_bar

SHIPPED = Path(__file__).parents[1] / "checkpoints"
DEFAULT_CHECKPOINT = "robosuite-nano"
ACCEPTANCE = "acceptance.json"
RECOMMENDED = ("rule", "granularity", "theta", "keep")  # what it may say


@dataclass
class PolicyParts:
    """What a policy folder holds, in evaluation mode on the CPU.

    `acceptance` has the settings of the engine that the folder recommends in place of the engine's defaults: what may
    stand depends on the codec and on how well the draft knows main.
    """

    codec: RFSQCodec
    main: MainModel
    draft: DraftModel | None
    acceptance: dict[str, Any] = field(default_factory=dict)


def resolve_checkpoint(path_or_id: str | Path | None = None) -> Path:
    """A folder on disk for a path, the name of a shipped checkpoint, or a hub id (downloaded). None: the default.

    Raises:
        FileNotFoundError: there is no such thing; the message says what was looked for and where.
    """
    name = str(path_or_id or DEFAULT_CHECKPOINT)
    for folder in (Path(name).expanduser(), SHIPPED / name):
        if folder.is_dir():
            return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        try:
            return Path(snapshot_download(name))
        except Exception as error:  # the hub raises some ten kinds, none of which says what to do
            raise FileNotFoundError(f"no folder {name!r}, and the hub did not give it: {error}") from error
    shipped = sorted(p.name for p in SHIPPED.glob("*") if p.is_dir()) or ["none"]
    raise FileNotFoundError(
        f"no checkpoint at {name!r}: expected a folder, a hub id (owner/name) or a shipped one ({', '.join(shipped)})"
    )


def load_policy(
    path_or_id: str | Path | None = None,
    draft: str | None = "coarse",
    device: str | torch.device = "cpu",
) -> PolicyParts:
    """Reads a policy folder.

    Args:
        path_or_id: see `resolve_checkpoint`.
        draft: the kind of draft model to load; None for none.
        device: where a main model in shards goes as it is read, so that it never is in the host's memory whole. Models
            in one file are small, and stay on the CPU.

    Raises:
        FileNotFoundError: the folder, or a part of it, is missing.
        ValueError: the parts do not fit together.
    """
    folder = resolve_checkpoint(path_or_id)
    parts = ["codec", "main"] + ([f"draft-{draft}"] if draft else [])
    if draft and draft not in DRAFT_KINDS:
        raise ValueError(f"got draft {draft!r}, expected one of {sorted(DRAFT_KINDS)}")
    for part in parts:
        sharded = (folder / part / INDEX).is_file()
        for file in ("config.json", INDEX if sharded else SINGLE):
            if not (folder / part / file).is_file():
                raise FileNotFoundError(f"{folder} is not a policy folder: {part}/{file} is missing")
    policy = PolicyParts(
        codec=RFSQCodec.from_pretrained(folder / "codec").eval(),
        main=load_main(folder / "main", choose_device(device)).eval(),
        draft=load_draft(str(folder / f"draft-{draft}"), draft).eval() if draft else None,
        acceptance=read_acceptance(folder / ACCEPTANCE),
    )
    check_fit(policy)
    return policy


def read_acceptance(file: Path) -> dict[str, Any]:
    """What a policy folder recommends, some of `RECOMMENDED`; nothing where there is no such file.

    Raises:
        ValueError: it says something else, or nothing that could be decoded with.
    """
    if not file.is_file():
        return {}
    told = read_json(file)
    if unknown := sorted(set(told) - set(RECOMMENDED)):
        raise ValueError(f"got {', '.join(unknown)} in {file}, expected some of {', '.join(RECOMMENDED)}")
    try:
        Acceptance(**told | ({"rule": parse_rule(told["rule"])} if "rule" in told else {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} in {file}") from error
    return told


def load_main(folder: Path, device: torch.device) -> MainModel:
    """A main model, in one file or in shards; the latter keep the dtype they are stored in.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are not those of the configuration; the message lists them.
    """
    if not (folder / INDEX).is_file():
        return MainModel.from_pretrained(folder)
    try:
        config = MainConfig(**read_json(folder / "config.json"))
    except TypeError as error:
        raise ValueError(f"{folder / 'config.json'} is not a main model's: {error}") from error
    main = build_empty(lambda: MainModel(config))
    shards = Shards(folder)
    require_match(expected_shapes(main), shards.shapes, folder)
    with progress_bar(f"loading {folder.parent.name}", len(shards.shapes)) as advance:
        fill(main, shards.stream(shards.shapes), device, None, advance)
    main.tokenizer = load_tokenizer(folder, config.max_tokens, config.prompt)
    return main


def check_fit(policy: PolicyParts) -> None:
    """Raises ValueError if codec, main and draft do not speak of the same chunk and code."""
    codec, head = policy.codec.config, policy.main.config.head
    want = {"layers": codec.layers, "latent_dims": codec.latent_dims, "levels": codec.levels}
    got = {name: getattr(head, name) for name in want}
    if got != want:
        raise ValueError(f"the main model predicts {got}, but the codec defines {want}")
    if policy.draft is not None:
        if policy.draft.config.head != head:
            raise ValueError(f"the draft predicts {policy.draft.config.head}, but the main model {head}")
        if policy.draft.config.prefix_width != policy.main.config.backbone.width:
            raise ValueError(
                f"the draft reads hidden states {policy.draft.config.prefix_width} wide, "
                f"but the main model's are {policy.main.config.backbone.width} wide"
            )


def save_half(model: nn.Module, folder: str | Path) -> None:
    """`save_pretrained` with parameters in bfloat16; statistics (buffers) stay as they are."""
    assert isinstance(model, PyTorchModelHubMixin)
    half = copy.deepcopy(model)
    assert isinstance(half, nn.Module)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    half.save_pretrained(folder)
