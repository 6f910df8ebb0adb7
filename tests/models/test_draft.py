"""The draft models: what they propose, and from what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rsd_fast.codec import CodecConfig, codec_preset
from rsd_fast.models.draft import DRAFTS, DraftConfig, RegressionDraft, load_draft, make_draft
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.inputs import Prefix
from rsd_fast.models.presets import draft_preset
from tests.policies import STEPS, tiny_policy

CODECS = {"redundant": CodecConfig(), "original": codec_preset("original")}
BATCH, TOKENS = 5, 9


def prefix(width: int = 32, seed: int = 0) -> Prefix:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[1, 6:] = False
    hidden = torch.randn(BATCH, TOKENS, width, generator=torch.Generator().manual_seed(seed))
    return Prefix([], [], hidden, mask)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", DRAFTS)
@torch.inference_mode()
def test_proposals_are_codes_of_the_chunk(kind: str, codec: str):
    policy = tiny_policy(kind, CODECS[codec])
    config = policy.codec.config
    proposal = policy.draft.propose(prefix(), policy.codec)
    drafted = config.layers if kind == "regression" else policy.draft.config.layers
    assert proposal.codes.dtype == torch.int32 and proposal.probs is None
    assert proposal.codes.shape == (BATCH, drafted, STEPS, config.latent_dims)
    assert proposal.codes.min() >= 0 and proposal.codes.max() < config.levels
    again = policy.draft.propose(prefix(), policy.codec)
    assert torch.equal(again.codes, proposal.codes)
    assert not torch.equal(policy.draft.propose(prefix(seed=1), policy.codec).codes, proposal.codes)


@pytest.mark.parametrize("kind", DRAFTS)
@torch.inference_mode()
def test_padding_is_not_read(kind: str):
    policy = tiny_policy(kind)
    seen, changed = prefix(), prefix()
    changed.hidden[1, 6:] = 99.0
    outputs = [policy.draft(view.hidden, view.mask) for view in (seen, changed)]
    assert torch.equal(*outputs)


@torch.inference_mode()
def test_a_regression_is_quantised_by_the_codec_whose_range_it_may_leave():
    policy = tiny_policy("regression")
    view = prefix()
    latents = policy.draft(view.hidden, view.mask)
    assert latents.shape == (BATCH, STEPS, 7)
    assert torch.equal(policy.draft.propose(view, policy.codec).codes, policy.codec.encode(latents).targets)
    policy.draft.readout.bias += 50.0
    assert (policy.draft.propose(view, policy.codec).codes[:, 0] == 4).all()


@torch.inference_mode()
def test_coarse_codes_are_the_likeliest_or_drawn_from_what_is_handed_on():
    policy = tiny_policy("coarse")
    view = prefix()
    logits = policy.draft(view.hidden, view.mask)
    assert torch.equal(policy.draft.propose(view, policy.codec).codes, logits.argmax(-1).int())
    shape = logits.shape[:-1]
    counts = torch.zeros(logits.shape)
    draws = 3000
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        proposal = policy.draft.propose(view, policy.codec, torch.rand(shape, generator=generator))
        counts += torch.nn.functional.one_hot(proposal.codes.long(), 5)
    assert torch.allclose(proposal.probs, logits.softmax(-1))
    spread = (proposal.probs * (1 - proposal.probs) / draws).sqrt()
    assert ((counts / draws - proposal.probs).abs() < 5.5 * spread + 1e-3).all()
    ends = [policy.draft.propose(view, policy.codec, torch.full(shape, u)).codes for u in (0.0, 1 - 2**-24)]
    assert (ends[0] == 0).all() and (ends[1] == 4).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "oracle"}, "got draft kind 'oracle', expected"),
        ({"layers": 0}, "got 0 draft layers, expected 1 to the code's 3"),
        ({"layers": 4}, "got 4 draft layers, expected 1 to the code's 3"),
    ],
)
def test_impossible_drafts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(DraftConfig(), **change)


def test_an_unknown_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"got draft 'big', expected one of \['coarse',.* 'regression'\]"):
        load_draft(str(tmp_path), "big")


def test_presets_propose_all_but_the_last_layer_or_three_of_eight():
    main = tiny_policy(None).main.config
    assert draft_preset("coarse", main).layers == 2
    eight = replace(main, head=HeadConfig(layers=8))
    assert draft_preset("coarse", eight).layers == 3
    assert draft_preset("coarse", replace(main, head=HeadConfig(layers=1))).layers == 1
    draft = make_draft(draft_preset("regression", main))
    assert isinstance(draft, RegressionDraft) and draft.config.head == main.head
