"""The heads that baselines decode with: what they read, what they give, and that they come back from a file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_fast.codec import CodecConfig, codec_preset
from rsd_fast.models.checkpoints import save_half
from rsd_fast.models.fused_backbone import FusedBackbone
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.heads_baseline import BASELINE_HEADS, ConditionedQueryHead
from rsd_fast.models.main import MainConfig, MainModel
from tests.models.test_heads import inputs_of, prefix_of, random_codes
from tests.policies import STEPS, four_heads, tiny_policy

CONDITIONED = "conditioned_queries"
CODECS = {"redundant": CodecConfig(), "original": codec_preset("original")}
MAINS = {name: four_heads(tiny_policy(None, config)).main for name, config in CODECS.items()}
PREFIXES = {(name, batch): prefix_of(main, batch) for name, main in MAINS.items() for batch in (1, 3, 16)}

cases = given(st.sampled_from(list(CODECS)), st.sampled_from([1, 3, 16]), st.integers(0, 1 << 20), st.integers(0, 99))


@cases
@settings(max_examples=40)
@torch.inference_mode()
def test_the_last_layer_s_codes_change_no_bit_and_given_codes_stay(name: str, batch: int, seed: int, other: int):
    main, prefix = MAINS[name], PREFIXES[name, batch]
    codes = random_codes(main, batch, seed)
    changed = torch.cat([codes[:, :-1], random_codes(main, batch, other)[:, -1:]], 1)
    before, after = (main.decode(prefix, given, CONDITIONED) for given in (codes, changed))
    assert before.shape == (*codes.shape, main.config.head.levels)
    assert torch.equal(before, after) and torch.isfinite(before).all()
    assert torch.equal(before[:, :-1].argmax(-1), codes[:, :-1].long())
    assert (before[:, :-1].softmax(-1).amax(-1) == 1).all()


@pytest.mark.parametrize("name", CODECS)
@torch.inference_mode()
def test_every_given_code_counts_at_every_step_of_the_last_layer(name: str):
    main, prefix = MAINS[name], PREFIXES[name, 1]
    head = main.config.head
    codes = random_codes(main, 1, 0)
    before = main.decode(prefix, codes, CONDITIONED)[:, -1]
    for layer in range(head.layers - 1):
        for step, dim in ((0, 0), (head.steps - 1, head.latent_dims - 1)):
            changed = codes.clone()
            changed[0, layer, step, dim] = (changed[0, layer, step, dim] + 1) % head.levels
            moved = (main.decode(prefix, changed, CONDITIONED)[:, -1] - before).abs().amax((-1, -2))[0]  # [T]
            assert (moved > 0).all()


@pytest.mark.parametrize("name", CODECS)
@torch.inference_mode()
def test_the_regression_gives_a_chunk_of_actions_in_a_pass_or_as_a_rider(name: str):
    main = MAINS[name]
    inputs = inputs_of(main, 3)
    actions = main.actions(main.prefill(inputs))
    assert actions.shape == (3, STEPS, 7) and actions.dtype == torch.float32
    assert main.can_ride("regression") and not main.can_ride(CONDITIONED)
    assert torch.equal(main.actions(main.prefill(inputs, in_place=True, rider="regression")), actions)
    assert not torch.allclose(actions[0, 0], actions[0, 1], atol=1e-3)  # every step has a query of its own


@torch.inference_mode()
def test_a_step_of_the_regression_sees_those_after_it():
    main = copy.deepcopy(MAINS["redundant"])
    prefix = PREFIXES["redundant", 1]
    before = main.actions(prefix)
    main.heads["regression"].step_embedding[-1] += 1
    assert ((main.actions(prefix) - before).abs().amax(-1) > 0).all()


@torch.inference_mode()
def test_a_row_is_the_row_alone_but_for_rounding_and_depends_on_its_own_observation():
    main, prefix = MAINS["redundant"], PREFIXES["redundant", 3]
    codes = random_codes(main, 3, 5)
    actions, logits = main.actions(prefix), main.decode(prefix, codes, CONDITIONED)
    for row in range(3):
        alone = main.prefill(inputs_of(main, 3)[row : row + 1])
        assert torch.allclose(main.actions(alone)[0], actions[row], atol=1e-4)
        assert torch.allclose(main.decode(alone, codes[row : row + 1], CONDITIONED)[0], logits[row], atol=1e-4)
    same = main.decode(prefix, codes[:1].expand(3, -1, -1, -1), CONDITIONED)[:, -1]
    assert not torch.allclose(same[0], same[1], atol=1e-2) and not torch.allclose(actions[0], actions[1], atol=1e-3)


@torch.inference_mode()
def test_the_fused_backbone_runs_them_too():
    main = MAINS["redundant"]
    fused = copy.deepcopy(main)
    fused.backbone = FusedBackbone(fused.backbone, main.config.prefix_tokens + main.config.head.queries)
    inputs, codes = inputs_of(main, 3), random_codes(main, 3, 0)
    got, wanted = fused.prefill(inputs, rider="regression"), main.prefill(inputs)
    assert torch.allclose(fused.actions(got), main.actions(wanted), atol=1e-4)
    assert torch.allclose(fused.decode(got, codes, CONDITIONED), main.decode(wanted, codes, CONDITIONED), atol=1e-4)


@pytest.mark.parametrize("name", CODECS)
def test_heads_that_run_together_do_what_each_does_alone_gradients_too(name: str):
    main = copy.deepcopy(MAINS[name])
    inputs = inputs_of(main, 2)
    codes = {head: random_codes(main, 2, seed) for seed, head in enumerate(main.heads)}
    gradients, answers = [], []
    for together in (False, True):
        main.zero_grad()
        prefix = main.prefill(inputs)
        if together:
            prefix.riders = main.run_together(prefix, codes)
        given = [main.decode(prefix, codes[head], head) for head in codes if head != "regression"]
        answers.append([*given, main.actions(prefix)])
        sum(answer.square().clamp_max(100).mean() for answer in answers[-1]).backward()
        gradients.append([p.grad.clone() for p in main.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for alone, beside in zip(answers[0] + gradients[0], answers[1] + gradients[1], strict=True):
        torch.testing.assert_close(beside, alone, rtol=1e-3, atol=1e-4)


def test_a_code_of_one_layer_gives_nothing_to_condition_on():
    head = ConditionedQueryHead(HeadConfig(steps=2, layers=1), 8)
    codes = torch.zeros(3, 1, 2, 7, dtype=torch.int32)
    assert torch.equal(head.queries(codes), head.step_embedding.expand(3, -1, -1))
    assert head.logits(torch.randn(3, 2, 8), codes).shape == (3, 1, 2, 7, 5)


@torch.inference_mode()
def test_four_heads_come_back_from_a_file(tmp_path: Path):
    main, prefix = MAINS["redundant"], PREFIXES["redundant", 3]
    main.save_pretrained(tmp_path / "whole")
    read = MainModel.from_pretrained(tmp_path / "whole")
    assert tuple(read.heads) == ("hierarchical", "parallel", *BASELINE_HEADS)
    codes = random_codes(main, 3, 0)
    for head in ("hierarchical", "parallel", CONDITIONED):
        assert torch.equal(read.decode(prefix, codes, head), main.decode(prefix, codes, head))
    assert torch.equal(read.actions(prefix), main.actions(prefix))
    save_half(main, tmp_path / "half")
    half = MainModel.from_pretrained(tmp_path / "half")
    assert torch.allclose(half.actions(prefix), main.actions(prefix), atol=0.05)


def test_a_model_of_two_heads_says_which_head_is_missing():
    main = tiny_policy(None).main
    assert tuple(main.heads) == ("hierarchical", "parallel")
    for mode, head in (("regression", "regression"), ("conditioned", CONDITIONED)):
        with pytest.raises(ValueError, match=f"mode '{mode}' needs a head of .*'{head}'.* this model has"):
            main.head_for(mode)


def test_a_configuration_from_before_these_heads_is_read_as_it_was_meant():
    told = {"steps": 8, "layers": 3, "latent_dims": 7, "levels": 5}  # no action_dims
    config = MainConfig(head=told)  # type: ignore[arg-type]  # as JSON gives it
    assert config == replace(MainConfig(), head=HeadConfig(8, 3, 7, 5, 7))
