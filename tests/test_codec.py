"""The codec: definition, bounds, redundancy, and agreement with an independent implementation."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rsd_fast.codec import CodecConfig, RFSQCodec, codec_preset

SHAPES = st.tuples(st.integers(1, 5), st.integers(2, 9), st.integers(1, 4))  # layers, levels, dims


def plain_codec(layers: int, levels: int, dims: int, redundancy: float, scale: float = 1.0) -> RFSQCodec:
    codec = RFSQCodec(CodecConfig(layers, levels, dims, dims, redundancy, gripper_dims=()))
    codec.fit_scale(torch.full((1, dims), scale))
    return codec


def latents_within(codec: RFSQCodec, seed: int, rows: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(rows, 3, codec.config.latent_dims, generator=generator) - 1) * codec.scales[0]


@given(SHAPES, st.floats(0, 1), st.floats(0.1, 3.0), st.floats(0, 1), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_error_stays_within_the_bound_after_every_layer(shape, redundancy, scale, perturb, seed):
    layers, levels, dims = shape
    codec = plain_codec(layers, levels, dims, 1 + redundancy * (levels - 2), scale)
    latents = latents_within(codec, seed)
    codes = codec.encode(latents, perturb, torch.Generator().manual_seed(seed)).prefix
    for layer in range(1, layers + 1):
        error = (codec.decode(codes, layer) - latents).abs().amax((0, 1))
        assert (error <= codec.remaining_bound(layer) * (1 + 1e-5) + 1e-6).all()


@given(SHAPES, st.floats(0, 1), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_a_perturbed_prefix_decodes_to_the_same_value_within_the_last_cell(shape, redundancy, seed):
    layers, levels, dims = shape
    codec = plain_codec(layers, levels, dims, 1 + redundancy * max(levels - 2, 0))
    latents = latents_within(codec, seed)
    perturbed = codec.encode(latents, 1.0, torch.Generator().manual_seed(seed))
    half_cell = codec.scales[-1] / (levels - 1)
    assert ((codec.decode(perturbed.prefix) - latents).abs() <= half_cell * (1 + 1e-4) + 1e-6).all()
    # Targets are the nearest codes given the prefix that was used. Subtracted layer by layer: a sum rounds otherwise.
    residual = latents
    for layer in range(layers - 1):
        residual = residual - codec._value(layer, perturbed.prefix[..., layer, :, :])
    assert torch.equal(codec._nearest(residual, codec.scales[-1]), perturbed.targets[..., -1, :, :])


def test_redundancy_is_what_lets_an_off_by_one_code_be_repaired():
    latents = torch.full((1, 1, 1), 0.3)
    for redundancy, repaired in ((1.0, False), (2.0, True)):
        codec = plain_codec(3, 5, 1, redundancy)
        nearest = codec.encode(latents).targets[..., 0, :, :]
        moved = torch.zeros(1, 3, 1, 1, dtype=torch.int32)
        moved[:, 0] = nearest + 1
        residual = latents - codec.decode(moved, 1)
        for layer in (1, 2):
            moved[:, layer] = codec._nearest(residual, codec.scales[layer])
            residual = latents - codec.decode(moved, layer + 1)
        assert (residual.abs().item() <= codec.scales[-1].item() / 4 + 1e-6) == repaired


def test_perturbation_takes_neighbours_as_often_as_asked_and_only_valid_ones():
    codec = plain_codec(3, 5, 7, 2.0)
    latents = latents_within(codec, 0, rows=2000)
    result = codec.encode(latents, 0.4, torch.Generator().manual_seed(1))
    difference = (result.prefix - result.targets).abs()
    assert difference.max() == 1
    assert difference[:, 0].float().mean() == pytest.approx(0.4, abs=0.01)
    assert difference[:, -1].sum() == 0  # nothing is left to repair the last layer


@pytest.mark.parametrize(
    ("value", "code"),
    [(-1.0, 0), (-0.75, 0), (-0.74, 1), (0.25, 2), (0.75, 4), (0.5, 3), (7.0, 4), (-7.0, 0)],
)
def test_ties_round_to_even_on_the_level_grid_and_values_out_of_range_clamp(value, code):
    codec = plain_codec(1, 5, 1, 2.0)
    assert codec.encode(torch.full((1, 1, 1), value)).targets.item() == code


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(bad):
    codec = RFSQCodec(CodecConfig())
    actions = torch.zeros(8, 7)
    actions[3, 2] = bad
    with pytest.raises(ValueError, match="actions hold 1 NaN or infinite"):
        codec.encode_actions(actions)
    with pytest.raises(ValueError, match="latents hold 1 NaN or infinite"):
        codec.encode(actions)


def fitted(preset: str) -> RFSQCodec:
    torch.manual_seed(3)
    codec = RFSQCodec(codec_preset(preset))
    actions = torch.randn(500, 7) * torch.tensor([0.1, 0.2, 0.3, 1, 1, 1, 1])
    codec.normalizer.fit(actions, torch.tensor([True] * 6 + [False]))
    if codec.config.normalization == "scale":
        codec.fit_scale(codec.actions_to_latents(actions))
    return codec.eval()


@pytest.mark.parametrize("preset", ["redundant", "original"])
def test_codes_decode_to_the_same_bits_in_a_fresh_process(preset, tmp_path):
    codec = fitted(preset)
    codec.save_pretrained(tmp_path)
    codes = torch.randint(0, codec.config.levels, (4, codec.config.layers, 8, codec.config.latent_dims))
    torch.save({"codes": codes, "actions": codec.decode_actions(codes)}, tmp_path / "expected.pt")
    script = (
        "import sys, torch; from rsd_fast.codec import RFSQCodec\n"
        "folder = sys.argv[1]; expected = torch.load(folder + '/expected.pt', weights_only=True)\n"
        "codec = RFSQCodec.from_pretrained(folder)\n"
        "assert torch.equal(codec.decode_actions(expected['codes']), expected['actions'])\n"
        "assert codec.encode_actions(expected['actions']).dtype == torch.int32\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("preset", ["redundant", "original"])
@pytest.mark.parametrize("batch", [2, 5, 64])
def test_a_row_decodes_to_the_same_bits_alone_and_in_a_batch(preset, batch):
    codec = fitted(preset)
    codes = torch.randint(0, codec.config.levels, (batch, codec.config.layers, 8, codec.config.latent_dims))
    together = codec.decode_actions(codes)
    for row in range(batch):
        assert torch.equal(codec.decode_actions(codes[row : row + 1])[0], together[row])


def test_round_trip_of_actions_is_within_the_action_bound():
    codec = fitted("redundant")
    actions = codec.normalizer.unnormalize(torch.rand(100, 8, 7) * 2 - 1)
    error = (codec.decode_actions(codec.encode_actions(actions)) - actions).abs().amax((0, 1))
    assert (error <= codec.action_bound(3) + 1e-5).all()


def test_adaptive_depth_grows_as_the_tolerance_shrinks_and_is_honest():
    codec = fitted("redundant")
    depths = [codec.depth_for(t) for t in (10.0, 0.4, 0.1, 1e-6)]
    assert depths == sorted(depths)
    assert depths[0] == 1
    assert depths[-1] == codec.config.layers
    for tolerance in (10.0, 0.4):
        assert (codec.action_bound(codec.depth_for(tolerance))[:6] <= tolerance).all()
    with pytest.raises(ValueError, match="tolerance"):
        codec.depth_for(0.0)


def test_the_original_code_reaches_half_a_percent_after_three_layers():
    codec = RFSQCodec(codec_preset("original"))
    latents = torch.rand(50, 8, 16) * 2 - 1
    assert (codec.decode(codec.encode(latents).targets, 3) - latents).abs().max() <= 0.005


def test_agreement_with_an_independent_residual_fsq():
    """vector-quantize-pytorch's ResidualFSQ shrinks its scale by V a layer: rho = (V - 1) / V without overlap."""
    from vector_quantize_pytorch import ResidualFSQ

    layers, levels, dims = 3, 5, 4
    ours = RFSQCodec(CodecConfig(layers, levels, dims, dims, (levels - 1) / levels, "none", gripper_dims=()))
    theirs = ResidualFSQ(dim=dims, levels=[levels] * dims, num_quantizers=layers).eval()
    latents = torch.rand(64, 8, dims, generator=torch.Generator().manual_seed(0)) * 2 - 1
    squash = levels / (levels - 1)  # it squashes its input softly; undo that
    quantised, _ = theirs(torch.atanh(latents / squash) * squash)
    assert (ours.decode(ours.encode(latents).targets) - quantised).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers 0"),
        ({"levels": 1}, "levels 1"),
        ({"redundancy": 0.5}, "redundancy 0.5"),
        ({"redundancy": 5.0}, "redundancy 5.0"),
        ({"latent_dims": 16}, "without an autoencoder"),
        ({"normalization": "layernorm"}, "layernorm"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        codec_preset("redundant", **change)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"original.*redundant"):
        codec_preset("modern")
