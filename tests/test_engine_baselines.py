"""Modes conditioned, regression and draft of the engine, against what they are by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsd_fast.acceptance import Acceptance
from rsd_fast.codec import CodecConfig, RFSQCodec, codec_preset
from rsd_fast.decoding import ChunkDecoder
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import PolicyParts
from rsd_fast.models.inputs import Prefix
from rsd_fast.models.loading import baseline_actions, from_openvla
from rsd_fast.observation import build_inputs
from rsd_fast.proposal import Proposal
from tests.models.openvla_files import make_networks, write_oft
from tests.policies import INSTRUCTIONS, STEPS, four_heads, observation, tiny_policy
from tests.toys import toy_codec

SEEN, TOLD = [observation(seed) for seed in range(3)], list(INSTRUCTIONS)
HEADS = [("conditioned", "regression"), ("conditioned", "coarse"), ("regression", None)]
MODES = [*HEADS, ("draft", "regression"), ("draft", "coarse")]


def parts_of(draft: str | None, codec: CodecConfig | None = None) -> PolicyParts:
    return four_heads(tiny_policy(draft, codec))


def engine_of(parts: PolicyParts, mode: str, **settings: Any) -> RSDInferenceEngine:
    return RSDInferenceEngine(parts.main, parts.draft, parts.codec, mode=mode, **{"device": "cpu"} | settings)


def prefix_of(parts: PolicyParts, row: int) -> Prefix:
    return parts.main.prefill(build_inputs([SEEN[row]], [TOLD[row]], parts.main.config, parts.main.tokenizer))


def last_digit(parts: PolicyParts, prefix: Prefix, codes: torch.Tensor, expected: bool) -> torch.Tensor:
    """What a draft's codes and the head's last layer decode to."""
    logits = parts.main.decode(prefix, codes, "conditioned_queries")[:, -1].float()
    table = parts.codec.codebook[-1].expand(*logits.shape)
    chosen = logits.argmax(-1)
    last = (logits.softmax(-1) * table).sum(-1) if expected else table.gather(-1, chosen[..., None])[..., 0]
    given = sum(
        parts.codec.codebook[layer].expand(*logits.shape).gather(-1, codes[:, layer, ..., None].long())[..., 0]
        for layer in range(codes.shape[1] - 1)
    )
    return parts.codec.latents_to_actions(given + last)


@pytest.mark.parametrize("draft", ["regression", "coarse"])
@pytest.mark.parametrize("expected", [True, False])
@torch.inference_mode()
def test_conditioned_is_the_draft_s_codes_and_one_pass_for_the_last_layer(draft: str, expected: bool):
    parts = parts_of(draft)
    actions, infos = engine_of(parts, "conditioned", expected_last=expected).generate_actions(SEEN, TOLD)
    for row, info in enumerate(infos):
        prefix = prefix_of(parts, row)
        codes = parts.draft.propose(prefix, parts.codec).codes
        given = torch.cat([codes[:, :2], torch.zeros_like(codes[:, :1])], 1)
        assert np.array_equal(info["codes"][:2], codes[0, :2].numpy())
        assert actions[row] == pytest.approx(last_digit(parts, prefix, given, expected)[0].numpy(), abs=1e-4)
        assert info["passes"] == 1 and info["kept_rates"] == info["match_rates"] == []
        if not expected:
            decoded = parts.codec.decode_actions(torch.from_numpy(info["codes"]))
            assert np.array_equal(decoded.numpy(), actions[row])


@torch.inference_mode()
def test_conditioned_verifies_nothing():
    """Whatever the draft says stands, and no rule changes that."""
    parts = parts_of(None)
    codec, prefix = parts.codec, prefix_of(parts, 0)
    generator = torch.Generator().manual_seed(0)
    for acceptance in (Acceptance(), Acceptance(granularity="layer", theta=0.5, expected_last=False)):
        decoder = ChunkDecoder(codec, acceptance, "conditioned", steps=STEPS)
        codes = torch.randint(0, 5, (1, 2, STEPS, 7), generator=generator, dtype=torch.int32)
        actions, state = decoder.run(
            lambda codes: parts.main.decode(prefix, codes, "conditioned_queries"), 1, Proposal(codes)
        )
        assert torch.equal(state.codes[:, :2], codes) and state.passes.tolist() == [1]
        wanted = last_digit(parts, prefix, state.codes, acceptance.expected_last)
        assert torch.allclose(actions, wanted, atol=1e-5)


@pytest.mark.parametrize("codec", [None, codec_preset("original")], ids=["redundant", "autoencoder"])
@torch.inference_mode()
def test_regression_is_the_head_s_actions_in_physical_units(codec: CodecConfig | None):
    parts = parts_of(None, codec)
    engine = engine_of(parts, "regression")
    actions, infos = engine.generate_actions(SEEN, TOLD)
    for row, info in enumerate(infos):
        wanted = parts.codec.normalizer.unnormalize(parts.main.actions(prefix_of(parts, row)))
        assert np.array_equal(actions[row], wanted[0].numpy())
        assert info["passes"] == 1 and info["accepted_layers"] == 0
        assert info["codes"].shape == (0, STEPS, parts.codec.config.latent_dims)
    assert engine.stats()["mean_passes"] == 1
    told = engine.describe()
    assert (told["mode"], told["draft"]) == ("regression", None)


@pytest.mark.parametrize("draft", ["regression", "coarse"])
@torch.inference_mode()
def test_draft_is_the_draft_model_s_own_chunk(draft: str):
    parts = tiny_policy(draft)  # needs no other head
    engine = engine_of(parts, "draft")
    actions, infos = engine.generate_actions(SEEN, TOLD)
    for row, info in enumerate(infos):
        prefix = prefix_of(parts, row)
        if draft == "regression":
            wanted = parts.codec.latents_to_actions(parts.draft(prefix.hidden, prefix.mask))
        else:
            wanted = parts.codec.decode_actions(parts.draft.propose(prefix, parts.codec).codes, 2)
        assert np.array_equal(actions[row], wanted[0].numpy())
        assert info["passes"] == 0 and info["codes"].shape == (0, STEPS, 7) and info["kept_rates"] == []
    assert engine.stats()["mean_passes"] == 0 and engine.describe()["draft"] == draft


@pytest.mark.parametrize(("mode", "draft"), MODES)
def test_a_batch_on_the_cpu_has_the_bits_of_its_rows_and_one_round_follows_another(mode: str, draft: str | None):
    engine = engine_of(parts_of(draft), mode)
    together, infos = engine.generate_actions(SEEN, TOLD)
    for row in (2, 0, 1):
        alone, info = engine.generate_action(SEEN[row], TOLD[row])
        assert np.array_equal(alone, together[row]) and np.array_equal(info["codes"], infos[row]["codes"])
    batched, _ = engine_of(parts_of(draft), mode, batch_invariant=False, batch_sizes=(3,)).generate_actions(SEEN, TOLD)
    # A draft's code may fall to the other side of a boundary by rounding; a regression has none.
    assert np.abs(batched - together).mean() < 1e-3
    assert not np.array_equal(together[0], together[1])


def test_other_modes_do_not_see_the_other_heads():
    two, four = tiny_policy("regression"), parts_of("regression")
    for mode in ("sequential", "rsd", "parallel"):
        expected, _ = engine_of(two, mode).generate_action(SEEN[0], TOLD[0])
        actions, _ = engine_of(four, mode).generate_action(SEEN[0], TOLD[0])
        assert np.array_equal(actions, expected)


def test_what_the_modes_cannot_do_is_refused_in_a_line():
    for mode in ("conditioned", "draft"):
        with pytest.raises(ValueError, match=f"mode '{mode}' needs a draft_model"):
            engine_of(parts_of(None), mode)
    for mode, draft in HEADS:
        with pytest.raises(ValueError, match=f"mode '{mode}' needs a head of .* this model has"):
            engine_of(tiny_policy(draft), mode)
    with pytest.raises(ValueError, match="got stop 2 in mode conditioned, expected 3: its head gives the last"):
        engine_of(parts_of("regression"), "conditioned", stop=2)
    with pytest.raises(ValueError, match="got a draft of 3 layers in mode conditioned, expected 7, all below the last"):
        engine_of(parts_of("coarse", codec_preset("original")), "conditioned")
    for mode in ("regression", "draft"):
        decoder = ChunkDecoder(toy_codec(), Acceptance(), mode, steps=STEPS)
        with pytest.raises(ValueError, match=f"got mode {mode}, expected a mode that decodes codes"):
            decoder.run(lambda codes: codes, 1)
    with pytest.raises(ValueError, match="mode conditioned needs a proposal"):
        ChunkDecoder(toy_codec(), Acceptance(), "conditioned", steps=STEPS).begin(1)


def test_the_original_code_is_conditioned_on_a_draft_of_every_layer():
    parts = parts_of("regression", codec_preset("original"))
    actions, info = engine_of(parts, "conditioned").generate_action(SEEN[0], TOLD[0])
    assert isinstance(parts.codec, RFSQCodec) and np.isfinite(actions).all()
    assert info["passes"] == 1 and info["codes"].shape == (8, STEPS, 16)


def test_an_openvla_oft_checkpoint_acts_by_its_own_l1_head(tmp_path: Path):
    parts = from_openvla(write_oft(tmp_path, make_networks()), steps=STEPS, device="cpu")
    actions, info = engine_of(parts, "regression").generate_action(SEEN[0], TOLD[0])
    inputs = build_inputs(SEEN[:1], TOLD[:1], parts.main.config, parts.main.tokenizer)
    with torch.inference_mode():
        assert actions == pytest.approx(baseline_actions(parts, inputs)[0].numpy(), abs=1e-5)
    assert info["passes"] == 1 and info["codes"].shape[0] == 0
