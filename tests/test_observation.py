"""Observations as evaluation scripts hold them: what is taken as it is, and what is refused with got and expected."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_fast.observation import build_inputs
from tests.policies import IMAGE, INSTRUCTIONS, observation, tiny_policy

MAIN = tiny_policy(draft=None).main


def build(*observations, instructions=None):
    instructions = INSTRUCTIONS[: len(observations)] if instructions is None else instructions
    return build_inputs(observations, instructions, MAIN.config, MAIN.tokenizer)


def changed(**parts):
    return {name: value for name, value in {**observation(), **parts}.items() if value is not ...}


def test_a_batch_is_stacked_as_it_is():
    inputs = build(observation(0), observation(1))
    assert len(inputs) == 2
    assert inputs.images.dtype == torch.uint8 and inputs.images.shape == (2, 2, IMAGE, IMAGE, 3)
    for row in range(2):
        seen = observation(row)
        assert np.array_equal(inputs.images[row, 0], seen["full_image"])  # third-person camera first
        assert np.array_equal(inputs.images[row, 1], seen["wrist_image"])
        assert np.array_equal(inputs.proprio[row], seen["state"])
    assert inputs.tokens.shape == inputs.token_mask.shape == (2, MAIN.config.max_tokens)


@given(st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=25)
def test_images_of_any_size_are_resized(height, width):
    inputs = build(changed(full_image=np.full((height, width, 3), (10, 120, 250), np.uint8)))
    assert inputs.images[0, 0].shape == (IMAGE, IMAGE, 3)
    assert (inputs.images[0, 0] == torch.tensor([10, 120, 250])).all()  # a plain image stays plain


def test_resizing_keeps_what_is_up_and_what_is_left():
    image = np.zeros((100, 60, 3), np.uint8)
    image[:50, :, 0] = 200
    image[:, :30, 1] = 200
    resized = build(changed(full_image=image)).images[0, 0].float()
    assert resized[: IMAGE // 3, :, 0].min() == 200 and resized[-IMAGE // 3 :, :, 0].max() == 0
    assert resized[:, : IMAGE // 3, 1].min() == 200 and resized[:, -IMAGE // 3 :, 1].max() == 0


def test_views_lists_and_read_only_arrays_are_taken():
    seen = observation()
    locked = seen["full_image"].copy()
    locked.flags.writeable = False
    variants = [
        changed(full_image=locked),
        changed(full_image=np.ascontiguousarray(seen["full_image"][::-1, ::-1])[::-1, ::-1]),
        changed(full_image=torch.from_numpy(seen["full_image"]), state=seen["state"].tolist()),
        changed(state=seen["state"].astype(np.float64), other="a key that nobody reads"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for variant in variants:
            inputs = build(variant)
            assert torch.equal(inputs.images, build(seen).images)
            assert torch.equal(inputs.proprio, build(seen).proprio)


def test_inputs_do_not_change_when_the_caller_reuses_the_arrays():
    seen = observation()
    inputs = build(seen)
    before = inputs.images.clone(), inputs.proprio.clone()
    seen["full_image"][:] = 0
    seen["state"][:] = 0
    assert torch.equal(inputs.images, before[0]) and torch.equal(inputs.proprio, before[1])


BLACK = np.zeros((IMAGE, IMAGE, 3), np.uint8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed(full_image=BLACK / 255), "full_image has dtype float64, expected uint8"),
        (changed(full_image=BLACK.astype(np.int64)), "full_image has dtype int64, expected uint8"),
        (changed(wrist_image=BLACK[..., 0]), r"wrist_image has shape \(32, 32\), expected \(height, width, 3\)"),
        (changed(wrist_image=BLACK[None]), r"wrist_image has shape \(1, 32, 32, 3\), expected \(height, width, 3\)"),
        (changed(full_image=BLACK.transpose(2, 0, 1)), r"shape \(3, 32, 32\), expected \(height, width, 3\)"),
        (changed(full_image=BLACK[..., [0, 1, 2, 0]]), r"shape \(32, 32, 4\), expected \(height, width, 3\)"),
        (changed(full_image=BLACK[:0]), r"shape \(0, 32, 3\), expected \(height, width, 3\)"),
        (changed(full_image=None), "full_image has dtype object, expected uint8"),
        (changed(wrist_image=...), r"no 'wrist_image'; it has \['full_image', 'state'\], expected"),
        (changed(full_image=...), r"no 'full_image'; it has \['state', 'wrist_image'\], expected"),
        (changed(state=...), r"no 'state'; it has \['full_image', 'wrist_image'\], expected"),
        (changed(state=np.zeros(7)), r"state has shape \(7,\), expected \(8,\): position"),
        (changed(state=np.zeros((1, 8))), r"state has shape \(1, 8\), expected \(8,\)"),
        (changed(state=[0.0] * 7 + [float("nan")]), "state holds NaN or infinite values: .* expected finite"),
        (changed(state=[float("inf")] * 8), "state holds NaN or infinite values: .* expected finite"),
        (changed(state=[1e300] * 8), "state holds NaN or infinite values: .* expected finite"),
        (changed(state=None), "state has dtype object, expected 8 real numbers"),
        (changed(state="home"), "state has dtype <U4, expected 8 real numbers"),
        (changed(state=np.zeros(8, complex)), "state has dtype complex128, expected 8 real numbers"),
        (changed(state=[[1, 2], [3]]), "state is not an array .* expected 8 numbers"),
    ],
)
def test_bad_observations_are_refused(bad, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is cast on the way to the error
        with pytest.raises(ValueError, match=message):
            build(observation(1), bad)


@pytest.mark.parametrize(
    ("observations", "instructions", "message"),
    [
        ([], [], "got an empty batch, expected at least one"),
        ([observation()] * 2, ["lift"], "got 2 observations and 1 instructions"),
        ([observation()] * 4, "lift", "got a single observation or instruction, expected a sequence of each"),
        (observation(), ["a", "b", "c"], "got a single observation or instruction, expected a sequence of each"),
        ([observation()], [""], "got instruction '', expected a non-empty string"),
        ([observation()], [None], "got instruction None, expected a non-empty string"),
    ],
)
def test_bad_batches_are_refused(observations, instructions, message):
    with pytest.raises(ValueError, match=message):
        build_inputs(observations, instructions, MAIN.config, MAIN.tokenizer)
