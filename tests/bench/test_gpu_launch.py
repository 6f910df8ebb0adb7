"""The study of launches and of the spread of rounds: what it concludes from times, without a GPU."""

from __future__ import annotations

import gc
import json
import os
import types

import numpy as np
import pytest
import torch

from bench.gpu_launch import expected, fit, line, loop_nodes, nanoseconds
from bench.gpu_spread import Rounds, collector, describe, host_alone, measure, one_core, slow_rounds
from bench.gpu_spread import line as spread_line
from rsd_fast.runtime import PackedBuffers

COUNT = 1000


def rounds_of(passes: list[int], per_pass: float = 150e-6) -> Rounds:
    """Without noise: 300 us of vision, so much a pass, 50 us outside of the GPU."""
    number = np.array(passes)
    parts = {"vision": np.full(len(number), 300e-6), "passes": per_pass * number}
    return Rounds(300e-6 + per_pass * number + 50e-6, parts, number)


def test_rounds_of_different_passes_are_a_spread_that_equal_passes_do_not_have():
    mixed = describe(rounds_of([2] * 980 + [3] * 20))
    assert mixed["gpu"]["p99_over_p50"] == pytest.approx(750 / 600)
    assert {number: of["rounds"] for number, of in mixed["by_passes"].items()} == {"2": 980, "3": 20}
    for of in mixed["by_passes"].values():
        assert of["gpu"]["p99_over_p50"] == of["host"]["p99_over_p50"] == pytest.approx(1)
    assert mixed["outside"]["p50_us"] == pytest.approx(50)
    assert all(us == pytest.approx(0, abs=1e-6) for us in mixed["slow"]["excess_us"].values())
    assert json.loads(json.dumps(mixed))["passes"].count(3) == 20
    assert "3 passes, 20 rounds" in spread_line({"name": "rsd, mixed", "preempted": 0, "throttled": None, **mixed})


@pytest.mark.parametrize("where", ["vision", "passes", "outside"])
@pytest.mark.parametrize(("slow", "bursts"), [(range(500, 520), 1), (range(0, 1000, 50), 20)])
def test_slow_rounds_say_what_took_longer_and_whether_they_stand_together(where, slow, bursts):
    rounds = rounds_of([2] * COUNT)
    late = np.zeros(COUNT)
    late[list(slow)] = 100e-6
    parts = {name: part + late * (name == where) for name, part in rounds.parts.items()}
    told = slow_rounds(Rounds(rounds.host + late, parts, rounds.passes))
    assert told["rounds"] == 20 and told["bursts"] == bursts
    assert told["excess_us"] == pytest.approx({"vision": 0, "passes": 0, "outside": 0, where: 100}, abs=1e-6)


def test_the_step_of_the_clock_is_found():
    ticks = np.random.default_rng(0).integers(1000, 2000, COUNT)
    rounds = Rounds(ticks * 40e-9, {"vision": ticks * 32e-9}, np.ones(COUNT, int))
    assert describe(rounds)["tick_ns"] == 32


def test_costs_of_nodes_are_found_and_predict():
    rows = [
        {**loop_nodes([head], [body]), "idle": {"p50_us": 6 + 0.01 * (head + 8) + 0.05 * (body + 1)}}
        for head, body in ((1, 1), (100, 1), (1, 100), (200, 200))
    ]
    found = fit(rows, ("outside", "inside"))
    assert found == pytest.approx({"us": 6, "us_per_outside": 0.01, "us_per_inside": 0.05})
    assert expected(found, outside=300, inside=100) == pytest.approx(14)


def test_a_row_is_printed_with_what_it_has():
    times = {"p10_us": 1.0, "p50_us": 2.0, "p90_us": 3.0}
    assert "by its nodes 2.5" in line({"name": "round", "outside": 7, "inside": 3, "idle": times, "expected_us": 2.5})
    assert line({"name": "nothing", "idle": times, "queued": times}).count("2.00") == 2


def test_a_call_that_fails_is_an_error_and_not_a_time():
    order: list[int] = []
    assert len(nanoseconds(lambda: 0, 3, order.append)) == 3 and order == [0, 1, 2]
    with pytest.raises(RuntimeError, match="status 700, expected 0"):
        nanoseconds(lambda: 700, 1)


def test_every_round_is_measured_with_its_own_passes():
    outputs = PackedBuffers({"passes": ((1,), torch.int32)}, torch.device("cpu"))
    filled: list[int] = []

    def run() -> None:
        outputs.on_host["passes"].fill_(1 + filled[-1])

    made = types.SimpleNamespace(outputs=outputs, fill=filled.append)
    loop = types.SimpleNamespace(run=run, milliseconds=lambda: {"vision": 0.3, "passes": 0.1 * (1 + filled[-1])})
    rounds = measure(made, loop, 9, inputs=[0, 1, 2])
    assert rounds.passes.tolist() == [1, 2, 3] * 3
    np.testing.assert_allclose(rounds.gpu, 0.3e-3 + 0.1e-3 * rounds.passes)
    assert (rounds.host > 0).all() and list(rounds.parts) == ["vision", "passes"]


def test_what_is_changed_for_a_variant_is_as_it_was_afterwards():
    allowed = os.sched_getaffinity(0)
    with pytest.raises(KeyError), one_core(), collector(on=False):
        assert len(os.sched_getaffinity(0)) == 1 and not gc.isenabled()
        raise KeyError
    assert os.sched_getaffinity(0) == allowed and gc.isenabled()


def test_a_host_is_described_by_how_steady_it_is():
    row = host_alone(count=20, seconds=1e-4)
    assert row["p50_us"] > 0 and row["p99_over_p50"] >= 1 and row["preempted"] >= 0
