"""The original RSD project's files: every variant decodes as networks written from its description do."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import PolicyParts
from rsd_fast.models.inputs import Prefix, last_hidden
from rsd_fast.models.loading import from_openvla
from rsd_fast.models.original import load_rfsq
from rsd_fast.observation import build_inputs
from tests.models.openvla_files import INSTRUCTION, make_networks, write_oft
from tests.models.original_files import DIMS, LAYERS, LEVELS, STEPS, WIDTH, Autoencoder, Draft, Head, make, write
from tests.models.test_openvla import OTHER, observe

NAMES = {"a": "linear", "b": "mlp", "c": "trunk", "d": "conditioned"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_oft(folder / "oft", make_networks())
    write(folder / "rfsq.pt", make(Autoencoder), use_layernorm=False, num_layers=LAYERS)
    write(folder / "rfsq7.pt", make(Autoencoder, dims=7), use_layernorm=False)
    for variant in NAMES:
        write(folder / f"head-{variant}.pt", make(Head, variant))
    write(folder / "head-a7.pt", make(Head, "a", dims=7))
    write(folder / "draft.pt", make(Draft, True, seed=4))
    write(folder / "draft7.pt", make(Draft, False, dims=7))
    return folder


def load(folder: Path, variant: str = "c", seven: str = "", **settings: object) -> PolicyParts:
    return from_openvla(
        folder / "oft",
        rfsq_head=folder / f"head-{variant}{seven}.pt",
        draft=folder / f"draft{seven}.pt",
        rfsq=folder / f"rfsq{seven}.pt",
        device="cpu",
        **settings,
    )


def prefix_of(policy: PolicyParts) -> Prefix:
    return policy.main.prefill(observe(policy.main, [INSTRUCTION, OTHER]))


# ---- autoencoder


@pytest.mark.parametrize("wrap", ["model", "model_state_dict", None])
def test_the_autoencoder_decodes_as_a_plain_sum_of_levels(tmp_path: Path, wrap: str | None):
    reference = make(Autoencoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codec = load_rfsq(write(tmp_path / "rfsq.pt", reference, wrap, use_layernorm=True))
    assert (codec.config.layers, codec.config.levels, codec.config.latent_dims) == (LAYERS, LEVELS, DIMS)
    codes = torch.randint(0, LEVELS, (5, LAYERS, STEPS, DIMS), dtype=torch.int32)
    with torch.no_grad():
        expected = reference.decode(codes.permute(0, 2, 3, 1).long())
        assert torch.allclose(codec.latents_to_actions(codec.decode(codes)), expected, atol=1e-5)
        actions = torch.rand(5, STEPS, 7) * 2 - 1
        assert torch.allclose(codec.actions_to_latents(actions), reference.encoder(actions), atol=1e-6)


def test_only_layernorm_warns(tmp_path: Path):
    network = make(Autoencoder)
    with pytest.warns(UserWarning, match="trained with per-sample LayerNorm.*plain sum"):
        load_rfsq(write(tmp_path / "a.pt", network, use_layernorm=True))
    with pytest.warns(UserWarning, match="does not say that it was not trained with per-sample LayerNorm"):
        load_rfsq(write(tmp_path / "b.pt", network, None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_rfsq(write(tmp_path / "c.pt", network, use_layernorm=False))


def test_levels_that_are_not_evenly_spaced_are_refused(tmp_path: Path):
    network = make(Autoencoder)
    network.rfsq.layers[3].boundaries[2] += 0.1
    with pytest.raises(ValueError, match=r"rfsq.layers.3.boundaries is \[.*\], expected evenly spaced"):
        load_rfsq(write(tmp_path / "rfsq.pt", network, use_layernorm=False))


# ---- heads and drafts


@pytest.mark.parametrize("variant", sorted(NAMES))
@torch.no_grad()
def test_every_head_variant_is_recognised_and_computes_what_it_should(folder: Path, variant: str):
    policy = load(folder, variant)
    assert policy.main.config.heads == (NAMES[variant],)
    assert policy.main.config.prompt is not None and policy.main.config.prompt.placeholders == 0
    prefix = prefix_of(policy)
    codes = torch.randint(0, LEVELS, (2, LAYERS, STEPS, DIMS), dtype=torch.int32)
    state = torch.stack([prefix.hidden[row, prefix.mask[row].sum() - 1] for row in range(2)])
    condition = codes[:, :3].permute(0, 2, 3, 1).long()
    expected = make(Head, variant)(state, condition)
    assert expected.std() > 0.01
    assert torch.allclose(policy.main.decode(prefix, codes, NAMES[variant]), expected, atol=1e-5)


@torch.no_grad()
def test_the_draft_with_a_projection_reads_the_last_state(folder: Path):
    policy = load(folder)
    prefix = prefix_of(policy)
    assert policy.draft is not None and policy.draft.config.layers == 3
    expected = make(Draft, True, seed=4)(last_hidden(prefix)[:, None])
    proposal = policy.draft.propose(prefix, policy.codec)
    assert torch.equal(proposal.codes, expected.argmax(-1).int())
    uniforms = torch.rand(2, 3, STEPS, DIMS)
    drawn = policy.draft.propose(prefix, policy.codec, uniforms)
    assert drawn.probs is not None and torch.allclose(drawn.probs, expected.softmax(-1), atol=1e-5)
    assert not torch.equal(drawn.codes, proposal.codes)


@torch.no_grad()
def test_the_older_draft_reads_the_states_of_the_action_placeholders(folder: Path):
    policy = load(folder, "a", "7")
    assert policy.main.config.prompt is not None and policy.main.config.prompt.placeholders == STEPS * 7
    prefix = prefix_of(policy)
    assert policy.draft is not None
    states = []
    for row in range(2):
        stop = prefix.mask[row].sum() - 1
        states.append(prefix.hidden[row, stop - 1 - STEPS * 7 : stop - 1])
    expected = make(Draft, False, dims=7)(torch.stack(states))
    assert torch.equal(policy.draft.propose(prefix, policy.codec).codes, expected.argmax(-1).int())


# ---- the engine


OBSERVATION = {
    "full_image": np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    "wrist_image": np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    "state": np.zeros(8),
}


def original_rule(draft: Tensor, main: Tensor, theta: float) -> tuple[int, Tensor]:
    """The original engine's acceptance: a prefix of layers whose codes match often enough keeps the draft's."""
    accepted = 0
    while accepted < len(draft) and (draft[accepted] == main[accepted]).float().mean() >= theta:
        accepted += 1
    return accepted, torch.cat([draft[:accepted], main[accepted:]])


@pytest.mark.parametrize("theta", [0.04, 0.2, 0.7])
@pytest.mark.parametrize("variant", ["a", "b", "c"])
@torch.no_grad()
def test_the_engine_accepts_as_the_original_one(folder: Path, variant: str, theta: float):
    policy = load(folder, variant)
    engine = RSDInferenceEngine(
        policy.main, policy.draft, policy.codec, rule="exact", granularity="layer", theta=theta, keep="draft",
        expected_last=False, device="cpu",
    )  # fmt: skip
    actions, info = engine.generate_action(OBSERVATION, INSTRUCTION)
    parallel = RSDInferenceEngine(policy.main, None, policy.codec, mode="parallel", expected_last=False, device="cpu")
    main = torch.from_numpy(parallel.generate_action(OBSERVATION, INSTRUCTION)[1]["codes"])
    assert policy.main.tokenizer is not None and policy.draft is not None
    inputs = build_inputs([OBSERVATION], [INSTRUCTION], policy.main.config, policy.main.tokenizer)
    draft = policy.draft.propose(policy.main.prefill(inputs), policy.codec).codes[0]
    accepted, expected = original_rule(draft, main, theta)
    assert torch.equal(torch.from_numpy(info["codes"]), expected)
    assert info["passes"] <= 2
    decoded = policy.codec.decode_actions(torch.from_numpy(info["codes"])[None])[0].detach().numpy()
    assert np.allclose(actions, decoded, atol=1e-5)
    if theta == 0.04:
        assert accepted > 0, "the case must have something to accept"


@torch.no_grad()
def test_the_conditioned_head_sees_the_draft_s_codes(folder: Path):
    policy = load(folder, "d")
    engine = RSDInferenceEngine(
        policy.main, policy.draft, policy.codec, rule="distance(6)", granularity="layer", theta=1.0, keep="draft",
        expected_last=False, device="cpu",
    )  # fmt: skip
    _, info = engine.generate_action(OBSERVATION, INSTRUCTION)
    assert info["accepted_layers"] == 3.0 and info["passes"] == 2, "the second pass only confirms the layers above"
    with pytest.raises(ValueError, match=r"mode 'parallel' needs a head of .*; this model has \['conditioned'\]"):
        RSDInferenceEngine(policy.main, None, policy.codec, mode="parallel", device="cpu")


def test_sizes_come_from_the_tensors(folder: Path):
    policy = load(folder, "d")
    assert policy.main.config.head_widths == {"conditioned": (20, 10, 5, 3)}
    assert policy.main.config.head.steps == STEPS and policy.draft is not None
    assert policy.draft.config.prefix_width == WIDTH and policy.draft.config.mlp_width == 24
