"""Queries that read no codes go through the backbone together with the prefix, to the same logits."""

from __future__ import annotations

import copy

import pytest
import torch

from rsd_fast.models.fused_backbone import FusedBackbone
from tests.models.test_heads import MAINS, inputs_of, random_codes

MAIN = MAINS["redundant"]


@torch.inference_mode()
def test_a_rider_s_logits_are_those_of_a_pass():
    inputs, codes = inputs_of(MAIN, 3), random_codes(MAIN, 3, 0)
    wanted = MAIN.decode(MAIN.prefill(inputs), codes, "parallel")
    prefix = MAIN.prefill(inputs, rider="parallel")
    assert torch.equal(MAIN.decode(prefix, codes, "parallel"), wanted)
    alone = MAIN.prefill(inputs)
    assert torch.equal(prefix.hidden, alone.hidden)  # the prefix does not see them
    assert torch.equal(MAIN.decode(prefix, codes), MAIN.decode(alone, codes))  # other heads still run their passes


@torch.inference_mode()
def test_the_fused_backbone_runs_them_side_by_side():
    fused = copy.deepcopy(MAIN)
    config = fused.config
    fused.backbone = FusedBackbone(fused.backbone, config.prefix_tokens + config.head.queries)
    inputs, codes = inputs_of(MAIN, 3), random_codes(MAIN, 3, 0)
    got = fused.decode(fused.prefill(inputs, rider="parallel"), codes, "parallel")
    wanted = MAIN.decode(MAIN.prefill(inputs), codes, "parallel")
    assert torch.allclose(got, wanted, atol=1e-4)
    got = fused.decode(fused.prefill(inputs, in_place=True), codes)
    assert torch.allclose(got, MAIN.decode(MAIN.prefill(inputs), codes), atol=1e-4)


@torch.inference_mode()
def test_a_head_that_reads_codes_cannot_ride():
    assert MAIN.can_ride("parallel") and not MAIN.can_ride("hierarchical")
    with pytest.raises(ValueError, match="got rider 'hierarchical', expected a head whose queries do not depend"):
        MAIN.prefill(inputs_of(MAIN, 1), rider="hierarchical")
