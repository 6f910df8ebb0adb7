"""The original RSD project's files: its RFSQ autoencoder, its RFSQ heads, its draft models.

Sizes are read from the tensors, variants are recognised by their keys, and every shape is checked.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsd_fast.codec import CodecConfig, RFSQCodec
from rsd_fast.models.draft_original import OriginalDraft, OriginalDraftConfig
from rsd_fast.models.formats import TorchFile, read_torch, require_match
from rsd_fast.models.head_registry import make_head
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.streaming import build_empty, expected_shapes


def load_rfsq(path: Path) -> RFSQCodec:
    """The RFSQ autoencoder. Statistics are left at their defaults: the caller has those of the data set.

    Its levels span [-1, 1] in every layer, and decoding sums them; that is a redundancy of V - 1. Trained with
    LayerNorm (`use_layernorm`), the encoder also divided each layer's residual by its own deviation, which is not in
    the codes: they decode as they always did, as a plain sum, and a warning says so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such autoencoder; the message lists the keys.
    """
    file = read_torch(path)
    boundaries = {name: tensor for name, tensor in file.tensors.items() if name.startswith("rfsq.")}
    networks = {name: tensor for name, tensor in file.tensors.items() if name not in boundaries}
    layers = len(boundaries)
    first, latent = (networks.get(f"encoder.{index}.weight") for index in (0, 2))
    if not layers or not _is_matrix(first) or not _is_matrix(latent):
        raise ValueError(f"{path} is no RFSQ autoencoder: it holds {_names(file)}")
    assert first is not None and latent is not None
    levels = _levels(boundaries, layers, path)
    config = CodecConfig(
        layers=layers,
        levels=levels,
        latent_dims=latent.shape[0],
        action_dims=first.shape[1],
        redundancy=levels - 1,
        normalization="none",
        autoencoder_width=first.shape[0],
        gripper_dims=(),
    )
    _require_config(file, action_dim=config.action_dims, hidden_dim=config.latent_dims, num_layers=layers)
    codec = RFSQCodec(config)
    kept = {name: shape for name, shape in expected_shapes(codec).items() if name.startswith(("encoder", "decoder"))}
    require_match(kept, {name: tuple(tensor.shape) for name, tensor in networks.items()}, path)
    codec.load_state_dict({name: tensor.float() for name, tensor in networks.items()}, strict=False)
    if file.config.get("use_layernorm", True):
        knows = "was trained" if "use_layernorm" in file.config else "does not say that it was not trained"
        warnings.warn(
            f"{path} {knows} with per-sample LayerNorm, whose statistics are not in the codes: they decode as the "
            "plain sum of levels, as the original project does, which does not invert its encoder",
            stacklevel=2,
        )
    return codec.eval()


def _levels(boundaries: dict[str, Tensor], layers: int, path: Path) -> int:
    expected = {f"rfsq.layers.{layer}.boundaries" for layer in range(layers)}
    if set(boundaries) != expected:
        raise ValueError(f"{path} holds {', '.join(sorted(boundaries))}, expected {', '.join(sorted(expected))}")
    levels = boundaries["rfsq.layers.0.boundaries"].numel()
    grid = torch.linspace(-1, 1, max(levels, 2))
    for name, values in sorted(boundaries.items()):
        if levels < 2 or values.shape != grid.shape or not torch.allclose(values.float(), grid, atol=1e-5):
            raise ValueError(f"{path}: {name} is {values.tolist()}, expected evenly spaced levels from -1 to 1")
    return levels


@dataclass(frozen=True)
class HeadFile:
    """An RFSQ head on disk.

    Attributes:
        file: its tensors.
        name: of the variant, one of `ORIGINAL_HEADS`.
        widths: its hidden widths.
        layers: L.
        logits: a layer, T * D * V.
    """

    file: TorchFile
    name: str
    widths: tuple[int, ...]
    layers: int
    logits: int


def recognise_head(file: TorchFile) -> HeadFile:
    """Which variant a file holds, by its keys.

    Raises:
        ValueError: none of the four; the message lists the keys.
    """
    shapes = file.shapes

    def size(name: str, dim: int = 0) -> int:
        if len(shapes.get(name, ())) <= dim or 0 in shapes[name]:
            raise ValueError(f"{file.path} is none of the RFSQ heads: no {name} in {_names(file)}")
        return shapes[name][dim]

    widths: tuple[int, ...] = ()
    if "classification_heads.0.weight" in shapes:
        name, last = "linear", "classification_heads.{}.weight"
    elif "feature_proj.0.weight" in shapes:
        name, last = "trunk", "layer_heads.{}.3.weight"
        widths = (size("feature_proj.0.weight"), size("layer_heads.0.0.weight"))
    else:
        name, last = "mlp", "classification_heads.{}.6.weight"
        widths = (size("classification_heads.0.0.weight"), size("classification_heads.0.3.weight"))
    logits = size(last.format(0))
    if name == "trunk" and "token_embedding.weight" in shapes:
        levels, embedding = size("token_embedding.weight"), size("token_embedding.weight", 1)
        name = "conditioned"
        widths = (*widths, embedding, size("token_proj.0.weight", 1) // max(logits // levels * embedding, 1))
    layers = sum(last.format(layer) in shapes for layer in range(len(shapes)))
    return HeadFile(file, name, widths, layers, logits)


def read_head(path: Path, codec: CodecConfig, width: int) -> tuple[HeadFile, HeadConfig]:
    """An RFSQ head, checked, and the chunk and code it predicts.

    Args:
        path: of the file.
        codec: of the codes it predicts; the number of steps follows.
        width: of main's hidden states.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such head, not of this codec, or not for this width.
    """
    found = recognise_head(read_torch(path))
    steps, rest = divmod(found.logits, codec.latent_dims * codec.levels)
    if rest or not steps or found.layers != codec.layers:
        raise ValueError(
            f"{path} gives {found.layers} layers of {found.logits} logits, but the codec has {codec.layers} layers and "
            f"needs a multiple of {codec.latent_dims} x {codec.levels}; is the head of another RFSQ autoencoder?"
        )
    head = HeadConfig(steps, codec.layers, codec.latent_dims, codec.levels)
    module = build_empty(lambda: make_head(found.name, head, width, found.widths))
    require_match(expected_shapes(module), found.file.shapes, f"{path} (read as the {found.name} head)")
    return found, head


def load_draft_file(path: Path, head: HeadConfig, width: int) -> OriginalDraft:
    """A draft model of either variant.

    Args:
        path: of the file.
        head: chunk and code of the main model it drafts for.
        width: of main's hidden states.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such draft, or does not fit the main model.
    """
    file = read_torch(path)
    shapes = file.shapes
    layers = sum(f"classification_heads.{layer}.3.weight" in shapes for layer in range(len(shapes)))
    needed = ("decoder.position_encoding", "decoder.decoder_layer.linear1.weight", "classification_heads.0.0.weight")
    if not layers or any(len(shapes.get(name, ())) < 2 for name in needed):
        raise ValueError(f"{path} is none of the draft models: {_names(file)}")
    config = OriginalDraftConfig(
        prefix_width=width,
        width=shapes[needed[0]][-1],
        mlp_width=shapes[needed[1]][0],
        head_width=shapes[needed[2]][0],
        layers=layers,
        projects="input_projection.weight" in shapes,
        head=head,
    )
    draft = OriginalDraft(config)
    require_match(expected_shapes(draft), shapes, f"{path} (read as a draft of {layers} layers for {head})")
    draft.load_state_dict({name: tensor.float() for name, tensor in file.tensors.items()})
    return draft.eval()


def _is_matrix(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 2


def _require_config(file: TorchFile, **sizes: int) -> None:
    for name, size in sizes.items():
        if file.config.get(name, size) != size:
            raise ValueError(f"{file.path} says {name} {file.config[name]}, but its tensors say {size}")


def _names(file: TorchFile) -> str:
    names = sorted(file.tensors)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
