"""Named sizes: the shipped policy must stay small."""

from __future__ import annotations

import pytest
import torch

from rsd_fast.codec import codec_preset
from rsd_fast.models.checkpoints import resolve_checkpoint
from rsd_fast.models.main import MainConfig, MainModel
from rsd_fast.models.presets import MAIN_PRESETS, main_preset


@pytest.mark.parametrize("codec", ["redundant", "original"])
@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_a_preset_predicts_the_codec_s_codes(name: str, codec: str):
    config = main_preset(name, codec_preset(codec), steps=8, vocab_size=400)
    head, wanted = config.head, codec_preset(codec)
    assert (head.steps, head.layers, head.latent_dims, head.levels) == (
        8,
        wanted.layers,
        wanted.latent_dims,
        wanted.levels,
    )
    assert config.vocab_size == 400
    assert config.vision == MAIN_PRESETS[name].vision and config.backbone == MAIN_PRESETS[name].backbone


def test_nano_has_a_few_million_parameters():
    with torch.device("meta"):
        model = MainModel(main_preset("nano", codec_preset("redundant"), steps=8))
    assert 3e6 < sum(parameter.numel() for parameter in model.parameters()) < 1e7
    assert model.config.prefix_tokens == 1 + 2 * 64 + 1 + 24


def test_the_shipped_checkpoint_is_at_most_25_megabytes():
    files = [path for path in resolve_checkpoint().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"got preset 'giga', expected one of .*'nano'.*'tiny'"):
        main_preset("giga", codec_preset("redundant"), steps=8)
    with pytest.raises(ValueError, match=r"got heads \['oracle'\], expected some of .*'hierarchical'"):
        MainConfig(heads=("hierarchical", "oracle"))
