"""The LIBERO suites as the rest of the package sees them, without a simulator."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from rsd_fast.evaluate.info import suites
from rsd_fast.sim import libero_suite
from rsd_fast.sim.libero_assets import STAND_INS, assets_notes, stand_ins
from rsd_fast.sim.suites import get_suite, get_task
from tests.sim.libero_setup import libero

CAPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}


@pytest.fixture(scope="module", autouse=True)
def assets() -> Iterator[Path]:
    with libero() as folder:
        yield folder


@pytest.mark.parametrize("name", CAPS)
def test_the_protocol_is_that_of_openvla_oft(name: str):
    suite = get_suite(name)
    assert len(suite.tasks) == (90 if name == "libero_90" else 10)
    assert {(task.suite, task.max_steps) for task in suite.tasks} == {(name, CAPS[name])}
    assert len({task.name for task in suite.tasks}) == len(suite.tasks)
    assert (suite.init_states, suite.settling_steps, suite.image_size) == (50, 10, 256)


def test_instructions_leave_the_scene_out():
    names = {
        "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket": "put both the alphabet "
        "soup and the tomato sauce in the basket",
        "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet": "close the top drawer of the cabinet",
        "push_the_plate_to_the_front_of_the_stove": "push the plate to the front of the stove",
    }
    assert {name: libero_suite.instruction(name) for name in names} == names
    assert get_task(get_suite("libero_90"), "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet").max_steps == 400


def test_suites_travel_to_other_processes():
    suite = get_suite("libero_goal")
    tasks = suite.tasks
    for copy in (pickle.loads(pickle.dumps(suite)), cloudpickle.loads(cloudpickle.dumps(suite))):
        assert copy == suite and copy.tasks == tasks


def test_initial_states_of_every_task_are_fifty_arrays_of_numbers():
    states = [
        libero_suite.load_states(libero_suite.package_folder() / "init_files" / name / f"{task.name}.pruned_init")
        for name in CAPS
        for task in get_suite(name).tasks
    ]
    assert {(type(of), len(of), of.dtype.name, of.ndim) for of in states} == {(np.ndarray, 50, "float64", 2)}
    assert all(np.isfinite(of).all() for of in states)


def test_nothing_else_is_unpickled(tmp_path: Path):
    torch.save(Path("x"), tmp_path / "states")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        libero_suite.load_states(tmp_path / "states")


# ---- assets that are not the official ones


def test_stand_ins_are_recognised_by_their_content(assets: Path, tmp_path: Path):
    known = stand_ins(assets)
    assert known in ([], list(STAND_INS))  # complete assets, or the reduced set
    for name in known:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((assets / name).read_bytes())
    (tmp_path / "LICENSE").touch()
    assert stand_ins(tmp_path) == known
    for name in known[1:]:
        (tmp_path / name).write_bytes(b"the official one, say")
    assert stand_ins(tmp_path) == known[:1]


def test_reports_say_how_many_there_are(assets: Path, tmp_path: Path):
    assert assets_notes(tmp_path) == ()
    suite = get_suite("libero_spatial")
    notes = suite.prepare()
    assert len(notes) == (1 if stand_ins(assets) else 0)
    for note in notes:
        assert note.startswith("15 of 224 LIBERO asset files are visual stand-ins")
        assert "not comparable with published success rates" in note
        assert str(assets) not in note  # reports travel
        assert note.partition(":")[0] in suite.status()


def test_info_says_where_the_assets_are(assets: Path, monkeypatch: pytest.MonkeyPatch):
    found = suites()
    assert found["libero_90"].startswith("90 tasks (") and str(assets) in found["libero_90"]
    monkeypatch.setenv("RSD_FAST_LIBERO_ASSETS", str(assets / "scenes"))
    assert "expected LIBERO's assets, but it has no ['articulated_objects'" in suites()["libero_10"]
