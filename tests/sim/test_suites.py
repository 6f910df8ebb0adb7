"""The registry of suites, and what every suite's tasks say of themselves."""

from __future__ import annotations

import pytest

from rsd_fast.sim.suites import get_suite, get_task, init_states

ROBOSUITE = get_suite("robosuite")


def test_an_unknown_suite_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"got suite 'libreo', expected one of .*'robosuite'"):
        get_suite("libreo")


def test_an_unknown_task_lists_the_known_ones():
    assert get_task(ROBOSUITE, "Stack").instruction == "stack the red cube on the green cube"
    with pytest.raises(ValueError, match=r"got task 'Door', expected one of \['Lift', 'Stack', 'PickPlaceCan'\]"):
        get_task(ROBOSUITE, "Door")


def test_tasks_are_told_apart_by_name_and_by_instruction():
    assert len({task.name for task in ROBOSUITE.tasks}) == len({task.instruction for task in ROBOSUITE.tasks}) == 3
    assert all(task.suite == ROBOSUITE.name and task.max_steps > 0 for task in ROBOSUITE.tasks)


@pytest.mark.parametrize("count", [0, 51, -1])
def test_no_more_evaluation_states_than_there_are(count: int):
    assert list(init_states(ROBOSUITE, 50)) == list(range(50))
    with pytest.raises(ValueError, match=f"got {count} episodes a task, expected 1 to the 50 of robosuite"):
        init_states(ROBOSUITE, count)
