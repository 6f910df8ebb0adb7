"""torch.compile, block by block.

A model's blocks are alike: compiled one by one, all of a class share the programs made for the first. That takes a
fraction of the wait for the whole loss as one program, and the fusions that matter (norms, rotary embeddings, gates)
lie inside a block anyway.
"""

from __future__ import annotations

import torch
from torch import nn

from rsd_fast.models.backbone import DecoderLayer
from rsd_fast.models.draft import CrossBlock
from rsd_fast.models.vision import Block, PatchEmbed

REGIONS = (DecoderLayer, Block, PatchEmbed, CrossBlock)


def compile_regions(model: nn.Module) -> None:
    """Compiles the blocks of a model in place, for one batch size; parameters and their names stay."""
    for module in model.modules():
        if isinstance(module, REGIONS):
            vars(module)["forward"] = torch.compile(module.forward, dynamic=False)


def restore_regions(model: nn.Module) -> None:
    """Undoes `compile_regions`."""
    for module in model.modules():
        vars(module).pop("forward", None)
