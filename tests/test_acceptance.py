"""The rules as people write them."""

import math

import pytest
import torch

from rsd_fast.acceptance import Acceptance, distance, exact, lossless, needed, parse_rule, typical


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("exact", exact()),
        ("distance(2)", distance(2)),
        (" distance( 1 ) ", distance(1)),
        ("distance", distance(1)),
        ("typical(0.3)", typical(0.3)),
    ],
)
def test_rules_parse(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["exact", "distance(2)", "typical(0.1)", "typical(1)"])
def test_a_rule_is_written_as_it_is_read(text):
    assert str(parse_rule(text)) == text


def test_a_table_of_distances_is_written_in_full():
    assert str(distance(((0, 1), (2, 0)))) == "distance(((0, 1), (2, 0)))"


@pytest.mark.parametrize(
    "text", ["", "nearest", "exact(1)", "distance(1.5)", "distance(-1)", "typical(0)", "typical(2)"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="got"):
        parse_rule(text)


def test_a_distance_may_differ_by_layer_and_dimension():
    table = distance(((0, 1), (2, 0))).slack_table(2, 2)
    assert table.dtype == torch.int32
    assert table.tolist() == [[0, 1], [2, 0]]
    with pytest.raises(ValueError, match=r"\(2, 2\), expected \(3, 7\)"):
        distance(((0, 1), (2, 0))).slack_table(3, 7)


@pytest.mark.parametrize(("theta", "elements", "count"), [(1.0, 56, 56), (0.7, 10, 7), (0.7, 128, 90), (0.95, 56, 54)])
def test_the_share_becomes_the_fewest_elements_that_reach_it(theta, elements, count):
    assert needed(theta, elements) == count
    assert count / elements >= theta - 1e-9
    assert (count - 1) / elements < theta


def test_typical_is_a_difference_of_logits():
    assert typical(0.25).log_tau == pytest.approx(math.log(0.25))


@pytest.mark.parametrize("setting", [{"granularity": "token"}, {"theta": 0.0}, {"theta": 1.5}])
def test_settings_without_a_meaning_are_refused(setting):
    with pytest.raises(ValueError, match="got"):
        Acceptance(**setting)


def test_lossless_is_layer_exact_and_complete():
    params = lossless().params(stop=3, elements=56, redraft="main")
    assert (params.granularity, params.rule, params.need, params.expected) == ("layer", "distance", 56, False)
