"""From the files users have to a policy: OpenVLA or OpenVLA-OFT, with the original project's head, draft and codec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rsd_fast.codec import CodecConfig, RFSQCodec
from rsd_fast.images import PUBLISHED, PUBLISHED_UNCROPPED
from rsd_fast.models.checkpoints import PolicyParts, check_fit
from rsd_fast.models.draft_original import OriginalDraft
from rsd_fast.models.formats import Shards, require_match
from rsd_fast.models.head_registry import make_head
from rsd_fast.models.heads import HEADS, HeadConfig
from rsd_fast.models.heads_oft import ACTION_DIMS, OFT_HEADS, BaselineHead
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.main import MainConfig, MainModel
from rsd_fast.models.openvla import (
    is_unread,
    published_name,
    read_backbone,
    read_cameras,
    read_prompt,
    read_statistics,
    read_vision,
    set_statistics,
)
from rsd_fast.models.openvla_folder import OpenVLAFolder
from rsd_fast.models.original import HeadFile, load_draft_file, load_rfsq, read_head
from rsd_fast.models.prompt import PromptTokenizer
from rsd_fast.models.streaming import build_empty, choose_device, expected_shapes, fill, require_filled
from rsd_fast.progress import progress_bar

# Room for LIBERO's longest prompts, and with 2 x 256 patches and proprio a prefix of 560 tokens, a multiple of 16.
PROMPT_TOKENS = 47


def from_openvla(
    path_or_hub_id: str | Path,
    *,
    rfsq_head: str | Path | None = None,
    draft: str | Path | None = None,
    rfsq: str | Path | RFSQCodec | None = None,
    unnorm_key: str | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PolicyParts:
    """Loads a policy, each weight straight to its device.

    With `rfsq_head` the model predicts codes. Without, it carries OpenVLA-OFT's own heads as baselines: `discrete`,
    and `l1` where the folder has an action head. Codec and draft are small and stay on the CPU; an engine moves them.

    Args:
        path_or_hub_id: a folder, or `owner/name` on the hub (downloaded).
        rfsq_head: `.pt` of the original project's RFSQ head, any variant.
        draft: `.pt` of its draft model, either variant.
        rfsq: `.pt` of its RFSQ autoencoder, or a codec; without, our own codes on the actions.
        unnorm_key: the data set whose statistics un-normalise; needed where the checkpoint knows several.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: of the networks; default bfloat16, on the CPU float32.
        **options: fields of `OpenVLAOptions`.

    Raises:
        FileNotFoundError: the folder, or a file of it, is missing.
        ValueError: a file is not what it should be, or files do not fit together. All names and shapes are checked
            before any weight of the folder is read.
        RuntimeError: a GPU that is not there.
    """
    where = choose_device(device)
    dtype = dtype or (torch.float32 if where.type == "cpu" else torch.bfloat16)
    source = open_openvla(
        path_or_hub_id,
        rfsq_head=rfsq_head,
        draft=draft,
        rfsq=rfsq,
        unnorm_key=unnorm_key,
        options=OpenVLAOptions(**options),
    )
    main = source.parts.main
    with progress_bar(f"loading {source.name}", source.count) as advance:
        fill(main, source.tensors(), where, dtype, advance)
    require_filled(main, where)
    main.to(where)  # statistics too
    return source.parts


def baseline_actions(parts: PolicyParts, inputs: PolicyInputs, head: str = "l1") -> Float[Tensor, "B T 7"]:
    """One pass of OpenVLA-OFT itself: actions in physical units from its own head, `l1` or `discrete`.

    Raises:
        ValueError: the model does not carry the head.
    """
    main = parts.main
    if head not in OFT_HEADS or head not in main.heads:
        raise ValueError(f"got head {head!r}, expected one of {[name for name in main.heads if name in OFT_HEADS]}")
    module = main.heads[head]
    assert isinstance(module, BaselineHead)
    return parts.codec.normalizer.unnormalize(module.actions(main.prefill(inputs)))


@dataclass(frozen=True)
class OpenVLAOptions:
    """What an OpenVLA folder does not say, or says wrongly.

    Attributes:
        new_heads: `hierarchical`, `parallel`: heads that no file has, freshly initialised, to be trained.
        steps: T, where no RFSQ head says it.
        cameras: images an observation; default what the configuration says, else two for OpenVLA-OFT (a folder with an
            action head or a proprio projector) and one for OpenVLA.
        causal: whether the prefix attends only backwards; default no for OpenVLA-OFT and yes for OpenVLA.
        crop: whether it was trained on random crops, so that the centre 90 % are cut out; default yes for OpenVLA-OFT.
        max_prompt_tokens: room for the prompt; longer ones are refused.
    """

    new_heads: tuple[str, ...] = ()
    steps: int = 8
    cameras: int | None = None
    causal: bool | None = None
    crop: bool | None = None
    max_prompt_tokens: int = PROMPT_TOKENS

    def __post_init__(self) -> None:
        """Raises ValueError on a head that is not ours, or on sizes below one."""
        object.__setattr__(self, "new_heads", tuple(self.new_heads))
        if unknown := set(self.new_heads) - set(HEADS):
            raise ValueError(f"got new_heads {sorted(unknown)}, expected some of {sorted(HEADS)}")
        if self.steps < 1 or self.max_prompt_tokens < 1 or (self.cameras is not None and self.cameras < 1):
            raise ValueError(f"got {self}, expected steps, cameras and max_prompt_tokens of at least 1")


@dataclass
class PolicySource:
    """A policy whose files are open and checked; `parts.main` has no weights yet.

    Attributes:
        name: of the folder.
        parts: codec and draft are complete; main has its statistics and tokenizer.
        count: tensors to come.
    """

    name: str
    parts: PolicyParts
    count: int
    _shards: Shards
    _published: dict[str, str]
    _others: dict[str, Tensor]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight of main by its name there, on the CPU, one at a time."""
        for name, tensor in self._shards.stream(self._published):
            yield self._published[name], tensor
        yield from self._others.items()


def open_openvla(
    path_or_hub_id: str | Path,
    *,
    rfsq_head: str | Path | None = None,
    draft: str | Path | None = None,
    rfsq: str | Path | RFSQCodec | None = None,
    unnorm_key: str | None = None,
    options: OpenVLAOptions,
) -> PolicySource:
    """Opens and checks everything that `from_openvla` loads, without reading the folder's weights."""
    folder = OpenVLAFolder.open(path_or_hub_id)
    causal = not folder.is_oft if options.causal is None else options.causal
    backbone, vocab_size = read_backbone(folder.config, causal)
    if backbone.depth > len(folder.shards.shapes):  # before anything of that size is built
        raise ValueError(f"config.json has {backbone.depth} layers, but there are {len(folder.shards.shapes)} tensors")
    key, statistics = read_statistics(folder.path, folder.config, unnorm_key)

    codec = _codec(rfsq, needed=rfsq_head is not None)
    set_statistics(codec.normalizer, statistics, "action", key)
    head_file, head = None, HeadConfig.of_codec(codec.config, options.steps)
    if rfsq_head is not None:
        head_file, head = read_head(Path(rfsq_head), codec.config, backbone.width)
    draft_model = None if draft is None else load_draft_file(Path(draft), head, backbone.width)

    widths = _head_widths(folder, head_file, vocab_size)
    prompt = read_prompt(folder.tokenizer, folder.config, _placeholders(head, head_file, draft_model))
    crop = folder.is_oft if options.crop is None else options.crop
    config = MainConfig(
        vision=read_vision(folder.config, folder.preprocessor),
        backbone=backbone,
        head=head,
        heads=(*widths, *options.new_heads),
        cameras=options.cameras or read_cameras(folder.config, default=2 if folder.is_oft else 1),
        vocab_size=vocab_size,
        max_tokens=options.max_prompt_tokens + prompt.extra_tokens,
        head_widths={name: hidden for name, hidden in widths.items() if hidden},
        proprio=folder.proprio_projector is not None,
        prompt=prompt,
        images=PUBLISHED if crop else PUBLISHED_UNCROPPED,
    )
    main = build_empty(lambda: MainModel(config)).eval()
    if config.proprio:
        set_statistics(main.proprio_normalizer, statistics, "proprio", key)
    main.tokenizer = PromptTokenizer(folder.tokenizer, config.max_tokens, prompt)
    parts = PolicyParts(codec.eval(), main, draft_model)
    check_fit(parts)
    published, others = _match(folder, main, head_file, options.new_heads)
    return PolicySource(folder.path.name, parts, len(published) + len(others), folder.shards, published, others)


def _codec(rfsq: str | Path | RFSQCodec | None, needed: bool) -> RFSQCodec:
    if isinstance(rfsq, RFSQCodec):
        return rfsq
    if rfsq is not None:
        return load_rfsq(Path(rfsq))
    if needed:
        raise ValueError("an RFSQ head needs the RFSQ autoencoder whose codes it predicts: pass rfsq")
    return RFSQCodec(CodecConfig(normalization="none"))


def _head_widths(
    folder: OpenVLAFolder, head_file: HeadFile | None, vocab_size: int
) -> dict[str, tuple[int, ...]]:
    """The heads that files have, with their hidden widths."""
    if head_file is not None:
        return {head_file.name: head_file.widths}
    widths: dict[str, tuple[int, ...]] = {"discrete": (vocab_size,)}
    if (file := folder.action_head) is not None:
        if "model.fc1.weight" not in file.shapes:
            raise ValueError(f"{file.path} is no L1 regression head: it holds {', '.join(sorted(file.tensors)[:12])}")
        widths["l1"] = (file.shapes["model.fc1.weight"][0],)
    return widths


def _placeholders(head: HeadConfig, head_file: HeadFile | None, draft: OriginalDraft | None) -> int:
    """Action placeholders in the prompt: OpenVLA-OFT's own heads read them, and the older draft."""
    if draft is not None and not draft.config.projects:
        return draft.config.elements
    return head.steps * ACTION_DIMS if head_file is None else 0


def _match(
    folder: OpenVLAFolder, main: MainModel, head_file: HeadFile | None, new_heads: Sequence[str]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Names in the shards -> names in main, and all other tensors of main; every one is accounted for."""
    parts = {"proprio_projector": folder.proprio_projector}
    if head_file is not None:
        parts[f"heads.{head_file.name}"] = head_file.file
    elif folder.action_head is not None:
        parts["heads.l1"] = folder.action_head
    others: dict[str, Tensor] = {}
    for place, file in parts.items():
        if file is not None:
            require_match(expected_shapes(main.get_submodule(place)), file.shapes, file.path)
            others |= {f"{place}.{name}": tensor for name, tensor in file.tensors.items()}
    config = main.config
    for name in new_heads:
        fresh = make_head(name, config.head, config.backbone.width)
        others |= {f"heads.{name}.{leaf}": tensor for leaf, tensor in fresh.state_dict().items()}

    shapes = expected_shapes(main)
    statistics = {name for name in shapes if name.startswith("proprio_normalizer.")}
    published = {published_name(name): name for name in shapes.keys() - others.keys() - statistics}
    found = {
        name: shape
        for name, shape in folder.shards.shapes.items()
        if name in published or not is_unread(name, config.vision)
    }
    require_match({name: shapes[own] for name, own in published.items()}, found, folder.path)
    return published, others
