"""What decoding promises, with a real main model (preset `tiny`, random weights) instead of arithmetic.

At granularity `layer`, rule `exact`, theta 1, the codes and actions are those of sequential decoding to the bit, for
any draft. That rests on the networks too: logits of a layer may not change by a bit when higher codes do, in whatever
batch, while a pass writes into the prefix's own buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from rsd_fast.acceptance import Acceptance, distance, exact, lossless, typical
from rsd_fast.codec import CodecConfig, RFSQCodec, codec_preset
from rsd_fast.decoding import ChunkDecoder, Pass
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.kernels.accept import RoundState
from rsd_fast.models.checkpoints import PolicyParts
from rsd_fast.observation import build_inputs
from rsd_fast.proposal import Proposal
from tests.policies import INSTRUCTIONS, STEPS, observation, tiny_policy

CODECS = {"redundant": CodecConfig(), "original": codec_preset("original")}
BATCHES = (1, 2, 7, 17, 64)


@cache
def policy(codec: str) -> PolicyParts:
    return tiny_policy(None, CODECS[codec])


@cache
def main_pass(codec: str, batch: int) -> Pass:
    """A pass of the main model against the prefix of `batch` different observations, as the engine runs it."""
    main = policy(codec).main
    observations = [observation(seed) for seed in range(batch)]
    instructions = [INSTRUCTIONS[row % 3] for row in range(batch)]
    with torch.inference_mode():
        prefix = main.prefill(build_inputs(observations, instructions, main.config, main.tokenizer), in_place=True)
    return partial(main.decode, prefix)


@torch.inference_mode()
def decode(
    codec: str,
    batch: int,
    mode: str,
    acceptance: Acceptance,
    draft: Proposal | None = None,
    stop: int | None = None,
    uniforms: Tensor | None = None,
) -> tuple[Tensor, RoundState, int]:
    """Actions, final state, and how many passes were run."""
    passes = 0

    def counted(codes: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return main_pass(codec, batch)(codes)

    decoder = ChunkDecoder(policy(codec).codec, acceptance, mode, steps=STEPS, stop=stop)
    actions, state = decoder.run(counted, batch, draft, uniforms)
    return actions, state, passes


@cache
def sequential(codec: str, batch: int, stop: int, expected_last: bool) -> tuple[Tensor, Tensor]:
    """The reference: actions and codes."""
    actions, state, passes = decode(
        codec, batch, "sequential", replace(lossless(), expected_last=expected_last), stop=stop
    )
    assert passes == stop
    return actions, state.codes


# ---- drafts: main's own codes -> codes that a draft might propose

Draft = Callable[[str, Tensor, RFSQCodec, Generator], Tensor]


def at_random(codec: str, own: Tensor, made: RFSQCodec, generator: Generator) -> Tensor:
    return torch.randint(0, made.config.levels, own.shape, generator=generator, dtype=torch.int32)


def main_s_own(codec: str, own: Tensor, made: RFSQCodec, generator: Generator) -> Tensor:
    return own.clone()


def nearly_right(codec: str, own: Tensor, made: RFSQCodec, generator: Generator) -> Tensor:
    """One code in fifty is off by one: long acceptance that must stop at the right place."""
    wrong = torch.rand(own.shape, generator=generator) < 0.02
    return torch.where(wrong, (own + 1) % made.config.levels, own)


def always_wrong(codec: str, own: Tensor, made: RFSQCodec, generator: Generator) -> Tensor:
    return (own + torch.randint(1, made.config.levels, own.shape, generator=generator, dtype=torch.int32)) % (
        made.config.levels
    )


def of_another_sample(codec: str, own: Tensor, made: RFSQCodec, generator: Generator) -> Tensor:
    return own.roll(1, 0) if len(own) > 1 else own.flip(2)


def consistent_lie(codec: str, own: Tensor, made: RFSQCodec, generator: Generator) -> Tensor:
    """A wrong first layer, and above it what main itself says to that: main agrees with every layer but one."""
    lie = always_wrong(codec, own, made, generator)
    with torch.inference_mode():
        for layer in range(1, own.shape[1]):
            lie[:, layer] = main_pass(codec, len(own))(lie)[:, layer].argmax(-1)
    return lie


DRAFTS: tuple[Draft, ...] = (at_random, main_s_own, nearly_right, always_wrong, of_another_sample, consistent_lie)


def check_lossless(codec: str, batch: int, draft: Draft, layers: int, stop: int, expected_last: bool, seed: int) -> int:
    """One round with `layers` layers drafted against sequential decoding; the passes it took."""
    made = policy(codec).codec
    actions, codes = sequential(codec, batch, stop, expected_last)
    proposed = draft(codec, codes, made, torch.Generator().manual_seed(seed))[:, :layers].contiguous()
    acceptance = replace(lossless(), expected_last=expected_last)
    rsd_actions, state, passes = decode(codec, batch, "rsd", acceptance, Proposal(proposed), stop)
    assert torch.equal(state.codes[:, :stop], codes[:, :stop])
    assert torch.equal(rsd_actions, actions)
    assert passes <= stop and int(state.passes.max()) == passes
    return passes


ROUNDS = {1: 120, 2: 120, 7: 120, 17: 120, 64: 300}


@pytest.mark.parametrize("batch", BATCHES)
def test_exact_layers_are_sequential_decoding_to_the_bit_for_twenty_thousand_drafts(batch: int):
    assert sum(size * rounds for size, rounds in ROUNDS.items()) > 20_000
    for seed in range(ROUNDS[batch]):
        draft = DRAFTS[seed % len(DRAFTS)]
        passes = check_lossless("redundant", batch, draft, layers=3, stop=3, expected_last=bool(seed & 8), seed=seed)
        if draft is main_s_own:
            assert passes == 1
        elif draft in (always_wrong, consistent_lie):
            assert passes > 1


@given(
    st.sampled_from(list(CODECS)),
    st.sampled_from([1, 3, 16]),
    st.sampled_from(DRAFTS),
    st.integers(1, 8),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 1 << 20),
)
@settings(max_examples=60)
def test_it_holds_for_other_codes_depths_and_lengths_of_the_draft(
    codec, batch, draft, layers, stop, expected_last, seed
):
    total = CODECS[codec].layers
    check_lossless(codec, batch, draft, min(layers, total), min(stop, total), expected_last, seed)


@given(
    st.sampled_from(list(CODECS)),
    st.sampled_from([1, 3, 16]),
    st.sampled_from(DRAFTS),
    st.sampled_from([0.01, 0.5, 0.75, 0.9, 1.0]),
    st.integers(0, 1 << 20),
)
@settings(max_examples=40)
def test_exact_layers_leave_the_lowest_layer_to_main_whatever_is_drafted_and_however_little_must_agree(
    codec, batch, draft, theta, seed
):
    """A layer that is accepted takes main's code where the draft's differs, and layer 0 sees nothing of the draft."""
    codes = sequential(codec, batch, CODECS[codec].layers, True)[1]
    proposed = draft(codec, codes, policy(codec).codec, torch.Generator().manual_seed(seed))
    acceptance = Acceptance(exact(), "layer", theta, keep="main")
    _, state, _ = decode(codec, batch, "rsd", acceptance, Proposal(proposed))
    assert torch.equal(state.codes[:, 0], codes[:, 0])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("codec", CODECS)
def test_main_s_own_guesses_as_the_next_draft_are_sequential_decoding_too(codec: str, batch: int):
    layers = CODECS[codec].layers
    actions, codes = sequential(codec, batch, layers, False)
    jacobi_actions, state, passes = decode(codec, batch, "jacobi", lossless())
    assert torch.equal(state.codes, codes) and torch.equal(jacobi_actions, actions)
    assert passes <= layers


@pytest.mark.parametrize("batch", BATCHES)
def test_sampling_with_the_same_draws_is_sequential_sampling_whatever_is_drafted(batch: int):
    generator = torch.Generator().manual_seed(batch)
    acceptance = lossless(temperature=0.7)
    for draft in DRAFTS:
        uniforms = torch.rand(batch, 3, STEPS, 7, 2, generator=generator)
        actions, state, _ = decode("redundant", batch, "sequential", acceptance, uniforms=uniforms)
        proposed = draft("redundant", state.codes, policy("redundant").codec, generator)
        rsd_actions, rsd, passes = decode(
            "redundant", batch, "rsd", acceptance, Proposal(proposed), uniforms=uniforms
        )
        assert torch.equal(rsd.codes, state.codes) and torch.equal(rsd_actions, actions)
        assert passes == 1 if draft is main_s_own else passes <= 3


@given(
    st.sampled_from(list(CODECS)),
    st.sampled_from(["sequential", "rsd", "jacobi", "parallel"]),
    st.builds(
        Acceptance,
        rule=st.sampled_from([exact(), distance(1), distance(3), typical(0.3)]),
        granularity=st.sampled_from(["element", "layer"]),
        theta=st.sampled_from([0.1, 0.7, 0.95, 1.0]),
        keep=st.sampled_from(["main", "draft"]),
        expected_last=st.booleans(),
    ),
    st.sampled_from([1, 3, 16]),
    st.sampled_from(DRAFTS),
    st.integers(1, 8),
    st.integers(0, 1 << 20),
)
@settings(max_examples=80)
def test_no_setting_takes_more_than_stop_passes_or_leaves_a_code_undecoded(
    codec, mode, acceptance, batch, draft, stop, seed
):
    made = policy(codec).codec
    stop = min(stop, made.config.layers)
    proposal = None
    if mode == "rsd":
        codes = sequential(codec, batch, stop, False)[1]
        proposal = Proposal(draft(codec, codes, made, torch.Generator().manual_seed(seed)))
    actions, state, passes = decode(codec, batch, mode, acceptance, proposal, stop)
    assert 1 <= passes <= (1 if mode == "parallel" else stop)
    assert bool(state.finished.all()) and torch.isfinite(actions).all()
    assert int(state.codes.min()) >= 0 and int(state.codes.max()) < made.config.levels
    if mode == "sequential":
        assert passes == stop
    if not acceptance.expected_last:
        decoded = made.decode_actions(state.codes, stop)
        # The backend of the op sums an action decoder in an order of its own.
        assert torch.allclose(actions, decoded, atol=1e-6) if made.decoder else torch.equal(actions, decoded)


@pytest.mark.parametrize(
    ("mode", "draft"),
    [("sequential", None), ("rsd", "regression"), ("rsd", "coarse"), ("jacobi", None), ("parallel", None)],
)
def test_on_the_cpu_a_chunk_has_the_same_bits_alone_and_in_any_batch(mode: str, draft: str | None):
    parts = tiny_policy(draft)
    engine = RSDInferenceEngine(parts.main, parts.draft, parts.codec, mode=mode, device="cpu")
    observations = [observation(seed) for seed in range(9)]
    instructions = [INSTRUCTIONS[seed % 3] for seed in range(9)]
    alone = [engine.generate_action(*pair) for pair in zip(observations, instructions, strict=True)]
    for rows in ([3, 4], [8, 0, 2, 2, 5], list(range(9))):
        actions, infos = engine.generate_actions([observations[r] for r in rows], [instructions[r] for r in rows])
        for place, row in enumerate(rows):
            assert (actions[place] == alone[row][0]).all()
            assert (infos[place]["codes"] == alone[row][1]["codes"]).all()
            assert infos[place]["passes"] == alone[row][1]["passes"]
