"""Every head by name, and which of them serves which mode of decoding."""

from __future__ import annotations

from torch import nn

from rsd_fast.models.heads import HEADS, HeadConfig
from rsd_fast.models.heads_baseline import BASELINE_HEADS
from rsd_fast.models.heads_oft import OFT_HEADS
from rsd_fast.models.heads_original import ORIGINAL_HEADS

HEAD_KINDS: tuple[str, ...] = (*HEADS, *BASELINE_HEADS, *ORIGINAL_HEADS, *OFT_HEADS)

# In order of preference. Layered modes (sequential, rsd, jacobi) also run with a parallel head of the original project,
# as its engine does: such a round ends after two passes at most, and a pass costs next to nothing.
DECODERS: dict[str, tuple[str, ...]] = {
    "layered": ("hierarchical", "conditioned", "trunk", "mlp", "linear"),
    "parallel": ("parallel", "trunk", "mlp", "linear"),
    "conditioned": ("conditioned_queries",),
    "regression": ("regression", "l1"),
}


def make_head(name: str, config: HeadConfig, width: int, hidden: tuple[int, ...] = ()) -> nn.Module:
    """A head by name.

    Args:
        name: of `HEAD_KINDS`.
        config: the chunk and code.
        width: of main's hidden states.
        hidden: the head's own widths; see its class.

    Raises:
        ValueError: a head without the widths it needs.
    """
    if name in HEADS:
        return HEADS[name](config, width)
    if name in BASELINE_HEADS:
        return BASELINE_HEADS[name](config, width)
    kind = (ORIGINAL_HEADS | OFT_HEADS)[name]
    if len(hidden) != kind.WIDTHS:
        raise ValueError(f"head {name!r} has {kind.WIDTHS} hidden widths, got {list(hidden)} in head_widths")
    return kind(config, width, hidden)
