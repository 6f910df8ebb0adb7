"""The settings of `rsd-fast convert`: a plain dataclass whose documentation is the `--help`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(kw_only=True)
class ConvertConfig:
    """Turns an OpenVLA or OpenVLA-OFT checkpoint, with the original RSD project's files, into a policy folder.

    What is written loads with RSDInferenceEngine.from_pretrained(OUT, draft="original"). Files are checked before
    anything is written; nothing in them is executed.

    Example:
      rsd-fast convert moojink/openvla-7b-oft-finetuned-libero-spatial --rfsq-head best_rfsq_head.pt
        --draft best_draft_with_projection.pt --rfsq rfsq_robust_best.pt --out checkpoints/libero-spatial
    """

    checkpoint: Positional[str]
    """A folder, or a hub id (owner/name)."""
    out: Path
    """The policy folder; it must not exist yet."""
    rfsq_head: Path | None = None
    """RFSQ head of the original project (.pt), any variant; without, OpenVLA-OFT's own heads."""
    draft: Path | None = None
    """Draft model of the original project (.pt), either variant."""
    rfsq: Path | None = None
    """RFSQ autoencoder of the original project (.pt)."""
    unnorm_key: str | None = None
    """Data set whose statistics un-normalise actions; needed where the checkpoint knows several."""
    new_heads: tuple[str, ...] = ()
    """hierarchical, parallel: heads that no file has, freshly initialised, to be trained."""
    steps: int = 8
    """Steps of a chunk, where no RFSQ head says it."""
    cameras: int | None = None
    """Images an observation; default two for OpenVLA-OFT, one for OpenVLA."""
    causal: bool | None = None
    """Whether the prefix attends only backwards; default no for OpenVLA-OFT, yes for OpenVLA."""
    crop: bool | None = None
    """Whether it was trained on random crops; default yes for OpenVLA-OFT."""
    max_prompt_tokens: int = 47
    """Room for the prompt."""
