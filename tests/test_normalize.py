"""Quantile normalisation: there and back, clipping, switches, constants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsd_fast.normalize import QuantileNormalizer

SWITCH = torch.tensor([True, True, False])


def normalizer(low=(-1.0, 0.0, 0.0), high=(1.0, 0.5, 1.0), mask=SWITCH) -> QuantileNormalizer:
    made = QuantileNormalizer(3)
    made.set_statistics(torch.tensor(low), torch.tensor(high), mask)
    return made


@given(st.floats(-10, 10), st.floats(1e-3, 10), st.floats(0, 1))
def test_values_between_the_quantiles_come_back(low, width, share):
    made = normalizer((low, 0, 0), (low + width, 1, 1))
    value = torch.tensor([low + share * width, 0.3, -1.0])
    inside = made.normalize(value)
    assert inside[:2].abs().max() <= 1
    assert made.unnormalize(inside) == pytest.approx(value, abs=1e-5)


def test_the_quantiles_are_the_ends_and_beyond_is_clipped():
    made = normalizer()
    ends = made.normalize(torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.5, 1.0], [-9.0, 9.0, 0.0]]))
    assert ends[:, :2].tolist() == pytest.approx(np.array([[-1, -1], [1, 1], [-1, 1]]), abs=1e-6)


def test_a_switch_passes_through_untouched_even_beyond_its_quantiles():
    value = torch.tensor([0.0, 0.0, -7.5])
    assert normalizer().normalize(value)[2] == -7.5
    assert normalizer().unnormalize(value)[2] == -7.5


def test_a_constant_dimension_is_finite_and_comes_back():
    made = normalizer((0.0, 2.0, 0.0), (1.0, 2.0, 1.0))
    inside = made.normalize(torch.tensor([0.5, 2.0, 0.0]))
    assert torch.isfinite(inside).all()
    assert made.unnormalize(inside)[1] == pytest.approx(2.0)


def test_fit_takes_the_one_and_ninety_nine_percent_quantiles():
    values = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    made = QuantileNormalizer(3)
    made.fit(values, SWITCH)
    assert made.q01.numpy() == pytest.approx(np.quantile(values.numpy(), 0.01, axis=0), abs=1e-6)
    assert made.q99.numpy() == pytest.approx(np.quantile(values.numpy(), 0.99, axis=0), abs=1e-6)
    assert torch.equal(made.mask, SWITCH)


def test_statistics_are_part_of_the_weights():
    other = QuantileNormalizer(3)
    other.load_state_dict(normalizer().state_dict())
    value = torch.tensor([0.2, 0.1, 1.0])
    assert torch.equal(other.normalize(value), normalizer().normalize(value))


@pytest.mark.parametrize(
    ("low", "high", "mask", "message"),
    [
        ([0.0, 0.0], [1.0, 1.0, 1.0], None, r"q01 has shape \(2,\), expected \(3,\)"),
        ([0.0] * 3, [1.0, float("nan"), 1.0], None, "must be finite"),
        ([0.0] * 3, [1.0, -1.0, 1.0], None, "q99 is below q01"),
        ([0.0] * 3, [1.0] * 3, [True], r"mask has shape \(1,\), expected \(3,\)"),
    ],
)
def test_impossible_statistics_are_refused_and_leave_the_old_ones(low, high, mask, message):
    made = normalizer()
    before = made.q99.clone()
    with pytest.raises(ValueError, match=message):
        made.set_statistics(torch.tensor(low), torch.tensor(high), None if mask is None else torch.tensor(mask))
    assert torch.equal(made.q99, before)
    normalizer((0.0, 0.0, 1.0), (1.0, 1.0, 0.0))  # a switch's quantiles are never read
