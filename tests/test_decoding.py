"""The guarantees of the decoding loop (its module lists them)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_fast.acceptance import Acceptance, distance, exact, lossless, typical
from rsd_fast.codec import CodecConfig, RFSQCodec, codec_preset
from rsd_fast.decoding import ChunkDecoder, Proposal
from rsd_fast.kernels.accept import RoundState
from tests.toys import HashMain, toy_codec

STEPS = 4


def run(
    codec, mode, acceptance, seeds, proposal=None, stop=None, uniforms=None
) -> tuple[torch.Tensor, RoundState, HashMain]:
    main = HashMain(codec.config, STEPS, seeds)
    decoder = ChunkDecoder(codec, acceptance, mode, steps=STEPS, stop=stop)
    actions, state = decoder.run(main, len(seeds), proposal, uniforms)
    return actions, state, main


def random_draft(codec, batch, layers, generator) -> Proposal:
    shape = (batch, layers, STEPS, codec.config.latent_dims)
    return Proposal(torch.randint(0, codec.config.levels, shape, generator=generator, dtype=torch.int32))


def nearly_right_draft(codec, seeds, layers, errors, generator) -> Proposal:
    """Main's own codes with a few places changed: the case where acceptance is long but must stop."""
    _, state, _ = run(codec, "sequential", lossless(), seeds)
    codes = state.codes[:, :layers].clone()
    wrong = torch.rand(codes.shape, generator=generator) < errors
    codes[wrong] = (codes[wrong] + 1) % codec.config.levels
    return Proposal(codes)


rounds = st.fixed_dictionaries(
    {
        "batch": st.sampled_from([1, 2, 3, 17, 64]),
        "layers": st.integers(1, 6),
        "levels": st.integers(2, 7),
        "dims": st.integers(1, 5),
        "seed": st.integers(0, 2**20),
        "drafted": st.integers(1, 6),
        "errors": st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    }
)


@given(rounds)
@settings(max_examples=80, deadline=None)
def test_layer_exact_theta_one_is_bit_for_bit_sequential_for_any_draft(case):
    codec = toy_codec(case["layers"], case["levels"], case["dims"])
    generator = torch.Generator().manual_seed(case["seed"])
    seeds = torch.randint(0, 1 << 20, (case["batch"],), generator=generator)
    _, sequential, _ = run(codec, "sequential", lossless(), seeds)
    drafted = min(case["drafted"], case["layers"])
    for draft in (
        random_draft(codec, case["batch"], drafted, generator),
        nearly_right_draft(codec, seeds, drafted, case["errors"], generator),
    ):
        actions, rsd, main = run(codec, "rsd", lossless(), seeds, draft)
        assert torch.equal(rsd.codes, sequential.codes)
        assert torch.equal(actions, codec.decode_actions(rsd.codes))
        assert main.passes <= codec.config.layers
    _, jacobi, _ = run(codec, "jacobi", lossless(), seeds)
    assert torch.equal(jacobi.codes, sequential.codes)


acceptances = st.builds(
    Acceptance,
    rule=st.sampled_from([exact(), distance(1), distance(2), typical(0.2)]),
    granularity=st.sampled_from(["element", "layer"]),
    theta=st.sampled_from([0.3, 0.7, 0.95, 1.0]),
    keep=st.sampled_from(["main", "draft"]),
    expected_last=st.booleans(),
)


@given(rounds, acceptances, st.sampled_from(["sequential", "rsd", "jacobi", "parallel"]), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_no_round_takes_more_than_stop_passes_and_all_codes_are_decoded(case, acceptance, mode, stop):
    codec = toy_codec(case["layers"], case["levels"], case["dims"])
    stop = min(stop, case["layers"])
    generator = torch.Generator().manual_seed(case["seed"])
    seeds = torch.arange(case["batch"])
    draft = random_draft(codec, case["batch"], min(case["drafted"], case["layers"]), generator)
    actions, state, main = run(codec, mode, acceptance, seeds, draft if mode == "rsd" else None, stop)
    assert main.passes == state.passes.max()
    assert (state.passes >= 1).all()
    assert (state.passes <= (1 if mode == "parallel" else stop)).all()
    assert bool(state.finished.all())
    assert torch.isfinite(actions).all()
    assert ((state.codes >= 0) & (state.codes < codec.config.levels)).all()
    if not acceptance.expected_last:
        assert torch.equal(actions, codec.decode_actions(state.codes, stop))


@given(rounds, acceptances)
@settings(max_examples=60, deadline=None)
def test_a_row_decodes_to_the_same_bits_alone_and_in_a_batch(case, acceptance):
    codec = toy_codec(case["layers"], case["levels"], case["dims"])
    generator = torch.Generator().manual_seed(case["seed"])
    seeds = torch.randint(0, 1 << 20, (case["batch"],), generator=generator)
    draft = nearly_right_draft(codec, seeds, min(case["drafted"], case["layers"]), case["errors"], generator)
    actions, together, _ = run(codec, "rsd", acceptance, seeds, draft)
    for row in range(0, case["batch"], 7):
        alone_actions, alone, _ = run(codec, "rsd", acceptance, seeds[[row]], Proposal(draft.codes[[row]]))
        assert torch.equal(alone_actions[0], actions[row])
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.passes[0], together.passes[row])


def original_engine(draft, main_codes, threshold):
    """The original project's verification of one pass: accepted layers keep the draft's codes."""
    accepted = 0
    codes = main_codes.clone()
    for layer in range(draft.shape[0]):
        if (draft[layer] == main_codes[layer]).float().mean().item() < threshold:
            break
        codes[layer] = draft[layer]
        accepted += 1
    return accepted, codes


@pytest.mark.parametrize("keep", ["main", "draft"])
@pytest.mark.parametrize("errors", [0.0, 0.1, 0.25, 0.35, 0.6])
def test_the_original_rule_accepts_the_same_layers_and_with_keep_draft_the_same_codes(keep, errors):
    codec = toy_codec(8, 7, 16)
    steps, batch = 8, 40
    generator = torch.Generator().manual_seed(5)
    seeds = torch.arange(batch)
    acceptance = Acceptance(exact(), "layer", theta=0.7, keep=keep, expected_last=False)
    decoder = ChunkDecoder(codec, acceptance, "rsd", steps=steps)
    # The original compares against one pass of main on the drafted prefix; draft near main's codes in that pass.
    main = HashMain(codec.config, steps, seeds)
    neutral = torch.full((batch, 8, steps, 16), 3, dtype=torch.int32)
    draft = neutral.clone()
    for layer in range(3):
        near = main(draft).argmax(-1).int()[:, layer]
        wrong = torch.rand(near.shape, generator=generator) < errors
        draft[:, layer] = torch.where(wrong, (near + 3) % 7, near)
    main_codes = main(draft).argmax(-1).int()
    state = decoder.begin(batch, Proposal(draft[:, :3]))
    decoder.accept(main(state.codes), state, torch.zeros(batch, steps, 16))
    for row in range(batch):
        accepted, codes = original_engine(draft[row, :3], main_codes[row], 0.7)
        assert state.frontier[row, 0, 0] - 1 == accepted  # one more layer is main's own
        if keep == "draft":
            assert torch.equal(state.codes[row, : accepted + 1], codes[: accepted + 1])
        else:
            assert torch.equal(state.codes[row, : accepted + 1], main_codes[row, : accepted + 1])


def test_sampling_with_a_fixed_draft_gives_the_codes_of_sequential_sampling():
    codec = toy_codec()
    generator = torch.Generator().manual_seed(0)
    seeds = torch.arange(64)
    uniforms = torch.rand(64, 3, STEPS, 7, 2, generator=generator)
    acceptance = lossless(temperature=1.0)
    _, sequential, _ = run(codec, "sequential", acceptance, seeds, uniforms=uniforms)
    _, rsd, _ = run(codec, "rsd", acceptance, seeds, random_draft(codec, 64, 2, generator), uniforms=uniforms)
    assert torch.equal(rsd.codes, sequential.codes)


def chi_square(counts, probabilities):
    from scipy import stats

    expected = probabilities * counts.sum()
    enough = expected > 5
    observed = torch.cat([counts[enough], counts[~enough].sum()[None]])
    wanted = torch.cat([expected[enough], expected[~enough].sum()[None]])
    observed, wanted = observed[wanted > 0].double(), wanted[wanted > 0].double()
    return stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue


def test_sampled_codes_are_distributed_as_main_s_own_samples():
    """Two layers, one element, 3 levels: all 9 outcomes against their exact probabilities, for a far draft."""
    codec = toy_codec(layers=2, levels=3, dims=1)
    batch = 40_000
    generator = torch.Generator().manual_seed(1)
    seeds = torch.zeros(batch, dtype=torch.int64)
    main = HashMain(codec.config, 1, seeds, peak=1.0)
    decoder = ChunkDecoder(codec, lossless(temperature=0.8), "rsd", steps=1)
    q = torch.tensor([0.7, 0.1, 0.2])
    drawn = torch.multinomial(q, batch, replacement=True, generator=generator).int().view(batch, 1, 1, 1)
    proposal = Proposal(drawn, q.expand(batch, 1, 1, 1, 3).contiguous())
    _, state = decoder.run(main, batch, proposal, torch.rand(batch, 2, 1, 1, 2, generator=generator))
    outcome = (state.codes[:, 0] * 3 + state.codes[:, 1]).flatten().long()
    exact_probabilities = torch.zeros(9)
    for first in range(3):
        codes = torch.tensor([first, 0]).int().view(1, 2, 1, 1)
        logits = HashMain(codec.config, 1, seeds[:1], peak=1.0)(codes)[0, :, 0, 0] / 0.8
        exact_probabilities[3 * first : 3 * first + 3] = logits[0].softmax(-1)[first] * logits[1].softmax(-1)
    assert chi_square(torch.bincount(outcome, minlength=9), exact_probabilities) > 1e-3
    # min(1, p/q) accepts more often than a point mass would: sum(min(p, q)) of the draws.
    first_layer = HashMain(codec.config, 1, seeds[:1], peak=1.0)(torch.zeros(1, 2, 1, 1).int())[0, 0, 0, 0] / 0.8
    overlap = torch.minimum(first_layer.softmax(-1), q).sum().item()
    assert (state.kept[:, 0] == 1).float().mean().item() == pytest.approx(overlap, abs=0.01)


def test_the_last_layer_is_never_the_draft_s():
    codec = toy_codec()
    seeds = torch.arange(8)
    draft = random_draft(codec, 8, 3, torch.Generator().manual_seed(0))
    everything = Acceptance(distance(4), "element", theta=1.0, expected_last=False)  # keeps whatever is proposed
    _, state, main = run(codec, "rsd", everything, seeds, draft)
    assert main.passes == 1
    assert torch.equal(state.codes[:, :2], draft.codes[:, :2])
    own = HashMain(codec.config, STEPS, seeds)(state.codes).argmax(-1).int()
    assert torch.equal(state.codes[:, 2], own[:, 2])


def test_expected_last_digit_is_the_mean_over_the_levels():
    codec = toy_codec(layers=1)
    seeds = torch.arange(3)
    acceptance = Acceptance(exact(), "element", theta=1.0, expected_last=True)
    actions, _, _ = run(codec, "sequential", acceptance, seeds)
    logits = HashMain(codec.config, STEPS, seeds)(torch.zeros(3, 1, STEPS, 7).int())
    mean = (logits.softmax(-1)[:, 0] * codec.codebook[0][None, None]).sum(-1)
    assert torch.allclose(actions, mean, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mode": "greedy"}, "greedy"), ({"stop": 0}, "stop 0"), ({"stop": 4}, "stop 4")],
)
def test_impossible_decoders_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ChunkDecoder(toy_codec(), lossless(), **{"mode": "rsd", "steps": STEPS} | change)


def test_only_rsd_takes_a_proposal_and_it_needs_one():
    codec = toy_codec()
    with pytest.raises(ValueError, match="needs a proposal"):
        ChunkDecoder(codec, lossless(), "rsd", steps=STEPS).begin(2)
    draft = random_draft(codec, 2, 2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="takes no proposal"):
        ChunkDecoder(codec, lossless(), "jacobi", steps=STEPS).begin(2, draft)


class KnowingMain:
    """Knows the latents, and says the nearest code of every layer, given the codes that stand below it."""

    def __init__(self, codec, latents) -> None:
        self.codebook, self.latents = codec.codebook, latents

    def __call__(self, codes) -> torch.Tensor:
        dims = torch.arange(codes.shape[-1])
        stand = torch.stack([self.codebook[layer][dims, codes[:, layer]] for layer in range(codes.shape[1])], 1)
        left = self.latents[:, None] - (stand.cumsum(1) - stand)
        return -(left[..., None] - self.codebook[None, :, None]).abs()


def draft_that_misses(codec, latents, wrong) -> Proposal:
    """The nearest codes of the two coarse layers, but two levels off or more where `wrong`."""
    codes = codec.encode(latents).targets[:, :2].clone()
    codes[:, 0] = torch.where(wrong, torch.where(codes[:, 0] >= 2, codes[:, 0] - 2, codes[:, 0] + 2), codes[:, 0])
    return Proposal(codes)


def test_a_layer_that_is_not_accepted_costs_one_pass_more():
    codec = toy_codec()
    latents = 2 * torch.rand(50, STEPS, 7, generator=torch.Generator().manual_seed(0)) - 1
    draft = draft_that_misses(codec, latents, torch.ones_like(latents, dtype=torch.bool))
    decoder = ChunkDecoder(codec, Acceptance(distance(1), "layer", 0.9, expected_last=False), "rsd", steps=STEPS)
    actions, state = decoder.run(KnowingMain(codec, latents), 50, draft)
    assert (state.passes == 2).all()
    assert (actions - latents).abs().max() <= 0.0626  # half a step of the last layer


@pytest.mark.parametrize("granularity", ["layer", "element"])
def test_elements_that_main_replaces_keep_no_digits_of_the_cell_they_leave(granularity):
    codec = toy_codec()
    latents = 2 * torch.rand(50, STEPS, 7, generator=torch.Generator().manual_seed(0)) - 1
    wrong = torch.zeros_like(latents, dtype=torch.bool)
    wrong[:, 0, :4] = True  # 4 of 28
    decoder = ChunkDecoder(codec, Acceptance(distance(1), granularity, 0.8, expected_last=False), "rsd", steps=STEPS)
    actions, state = decoder.run(KnowingMain(codec, latents), 50, draft_that_misses(codec, latents, wrong))
    assert (state.passes == 1).all()
    error = (actions - latents).abs()
    assert error[wrong].max() <= 0.2501  # half a cell of the first layer
    assert error[~wrong].max() <= 0.0626


def test_the_middle_is_proposed_where_it_is_a_level_off_at_most():
    def redraft(codec, mode, **settings) -> str:
        return ChunkDecoder(codec, Acceptance(), mode, steps=STEPS, **settings).params.redraft

    assert redraft(toy_codec(), "rsd") == redraft(toy_codec(), "jacobi") == "middle"
    assert redraft(toy_codec(), "sequential") == redraft(toy_codec(), "parallel") == "none"
    assert redraft(RFSQCodec(codec_preset("original")), "rsd") == "main"
    assert redraft(toy_codec(), "rsd", layered=False) == "main"  # nothing that such a head says is out of date
    for redundancy, wanted in ((2.9, "main"), (3.0, "middle")):
        assert redraft(RFSQCodec(CodecConfig(3, 7, 7, 7, redundancy, "none")), "rsd") == wanted
