"""The main model as a whole: what its prefix is made of, and that its ways of running agree."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from rsd_fast.models.main import MainConfig
from rsd_fast.models.presets import MAIN_PRESETS
from tests.models.test_heads import MAINS, inputs_of, random_codes

MAIN = MAINS["redundant"]
PATCHES = 16


@torch.inference_mode()
def test_the_prefix_is_begin_patches_of_every_camera_proprio_and_words():
    inputs = inputs_of(MAIN, 2)
    x, mask = MAIN.embed(inputs, MAIN.encode_images(inputs.images))
    assert x.shape[1] == mask.shape[1] == MAIN.config.prefix_tokens == 1 + 2 * PATCHES + 1 + 12
    parts = {"images": slice(1, 1 + 2 * PATCHES), "proprio": slice(1 + 2 * PATCHES, 2 + 2 * PATCHES)}
    words = slice(2 + 2 * PATCHES, None)
    assert torch.equal(mask[:, words], inputs.token_mask) and mask[:, : words.start].all()
    changes = {
        "images": replace(inputs, images=255 - inputs.images),
        "proprio": replace(inputs, proprio=-inputs.proprio),
        "tokens": replace(inputs, tokens=inputs.tokens.flip(0)),
    }
    for name, changed in changes.items():
        moved = (MAIN.embed(changed, MAIN.encode_images(changed.images))[0] - x).abs().amax((0, 2)) > 0
        where = parts.get(name, words)
        assert moved[where].any()
        moved[where] = False
        assert not moved.any(), name


@torch.inference_mode()
def test_features_computed_before_give_the_same_prefix():
    inputs = inputs_of(MAIN, 3)
    whole, staged = MAIN.prefill(inputs), MAIN.prefill(inputs, MAIN.encode_images(inputs.images))
    assert torch.equal(whole.hidden, staged.hidden)
    assert all(torch.equal(*pair) for pair in zip(whole.keys, staged.keys, strict=True))


@pytest.mark.parametrize("head", ["hierarchical", "parallel"])
@torch.inference_mode()
def test_passes_in_the_prefix_s_own_buffers_are_those_on_a_copy(head: str):
    inputs, codes = inputs_of(MAIN, 3), random_codes(MAIN, 3, 0)
    copied, in_place = MAIN.prefill(inputs), MAIN.prefill(inputs, in_place=True)
    expected = MAIN.decode(copied, codes, head)
    MAIN.decode(in_place, random_codes(MAIN, 3, 1), head)  # leaves nothing behind
    assert torch.allclose(MAIN.decode(in_place, codes, head), expected, atol=1e-5)
    assert torch.equal(MAIN.decode(copied, codes, head), expected)


@torch.inference_mode()
def test_words_cut_after_the_last_one_decode_as_padded_ones():
    inputs, codes = inputs_of(MAIN, 3), random_codes(MAIN, 3, 0)
    used = int(inputs.token_mask.sum(1).max())
    assert used < MAIN.config.max_tokens
    padded = MAIN.decode(MAIN.prefill(inputs), codes)
    cut = MAIN.decode(MAIN.prefill(inputs.first_tokens(used)), codes)
    assert torch.allclose(cut, padded, atol=1e-4)


def test_a_configuration_survives_json():
    for config in (*MAIN_PRESETS.values(), MAIN.config):
        assert MainConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_a_mode_without_a_head_is_refused():
    assert MAIN.head_for("parallel") == "parallel" and MAIN.head_for("rsd") == "hierarchical"
    with torch.device("meta"):
        only = type(MAIN)(replace(MAIN.config, heads=("parallel",)))
    with pytest.raises(ValueError, match=r"mode 'rsd' needs a head of .*; this model has \['parallel'\]"):
        only.head_for("rsd")
