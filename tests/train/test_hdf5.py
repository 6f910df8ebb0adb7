"""Demonstration files: LIBERO's layout, whole or not there, and read back as they were written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd_fast.sim.suites import Task
from rsd_fast.train.config import DemosConfig
from rsd_fast.train.hdf5 import Demonstration, gather, read_numbers, read_task_file_seeds, settings, write_part
from rsd_fast.train.read import find_files, read_demo, read_demos, read_headers

TASK = Task("robosuite", "Lift", "lift the red cube", 150)
SIZE = 16
CONFIG = DemosConfig(image_size=SIZE, push=0.5, seed=3, episodes=2)
# What LIBERO's files have, by name: shape behind N, dtype.
LAYOUT = {
    "actions": ((7,), "float32"),
    "dones": ((), "uint8"),
    "rewards": ((), "uint8"),
    "robot_states": ((9,), "float32"),
    "states": ((5,), "float32"),
    "obs/agentview_rgb": ((SIZE, SIZE, 3), "uint8"),
    "obs/eye_in_hand_rgb": ((SIZE, SIZE, 3), "uint8"),
    "obs/ee_states": ((6,), "float32"),
    "obs/ee_pos": ((3,), "float32"),
    "obs/ee_ori": ((3,), "float32"),
    "obs/gripper_states": ((2,), "float32"),
    "executed_actions": ((7,), "float32"),  # ours only, as the next
    "pushed": ((), "uint8"),
}


def demonstration(seed: int, count: int = 20) -> Demonstration:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (2, count, 7)).astype(np.float32)
    images = rng.integers(0, 256, (2, count, SIZE, SIZE, 3), np.uint8)
    proprio, states = np.split(rng.uniform(-1, 1, (count, 13)).astype(np.float32), [8], axis=1)
    pushed, fixtures = rng.integers(0, 2, count, np.uint8), rng.uniform(-1, 1, (3, 7))
    return Demonstration(seed, *actions, pushed, proprio, states, fixtures, *images)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    parts = []
    for seed, count in ((3, 20), (5, 7)):
        parts.append(tmp_path / f"demo_{seed}.hdf5")
        write_part(parts[-1], demonstration(seed, count))
    gather(parts, tmp_path / "Lift_demo.hdf5", TASK, CONFIG)
    for part in parts:
        part.unlink()
    return tmp_path / "Lift_demo.hdf5"


def test_the_layout_is_libero_s(file: Path):
    with h5py.File(file) as source:
        data = source["data"]
        assert list(source) == ["data"] and sorted(data) == ["demo_0", "demo_1"]
        assert data.attrs["num_demos"] == 2 and data.attrs["total"] == 27
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "lift the red cube"
        assert json.loads(data.attrs["env_args"])["env_name"] == "Lift"
        assert data.attrs["image_convention"] == "upright"
        for name, count, seed in (("demo_0", 20, 3), ("demo_1", 7, 5)):
            demo = data[name]
            assert demo.attrs["num_samples"] == count and demo.attrs["seed"] == seed and demo.attrs["success"]
            found: dict[str, Any] = {}
            demo.visititems(lambda key, node, found=found: found.update({key: node}))
            sets = {key: node for key, node in found.items() if isinstance(node, h5py.Dataset)}
            fixtures = sets.pop("fixtures")
            assert (fixtures.shape, fixtures.dtype.name) == ((3, 7), "float64")
            assert {key: (node.shape, node.dtype.name) for key, node in sets.items()} == {
                key: ((count, *shape), dtype) for key, (shape, dtype) in LAYOUT.items()
            }


def test_states_are_split_as_libero_splits_them(file: Path):
    demo = demonstration(3)
    with h5py.File(file) as source:
        group = source["data/demo_0"]
        position, turn, fingers = demo.proprio[:, :3], demo.proprio[:, 3:6], demo.proprio[:, 6:]
        assert np.array_equal(group["obs/ee_pos"], position)
        assert np.array_equal(group["obs/ee_ori"], turn)
        assert np.array_equal(group["obs/ee_states"], np.hstack([position, turn]))
        assert np.array_equal(group["obs/gripper_states"], fingers)
        robot = group["robot_states"][()]
        assert np.array_equal(robot[:, :5], np.hstack([fingers, position]))
        assert Rotation.from_quat(robot[:, 5:]).as_rotvec() == pytest.approx(turn, abs=1e-5)
        for name in ("dones", "rewards"):
            assert group[name][()].tolist() == [0] * 19 + [1]


def test_what_is_read_is_what_was_written(file: Path):
    headers = read_headers(file)
    assert [(header.key, header.frames, header.instruction) for header in headers] == [
        ("demo_0", 20, "lift the red cube"),
        ("demo_1", 7, "lift the red cube"),
    ]
    for header, seed in zip(headers, (3, 5), strict=True):
        read, wrote = read_demo(header), demonstration(seed, header.frames)
        assert np.array_equal(read.images[:, 0], wrote.full_images)
        assert np.array_equal(read.images[:, 1], wrote.wrist_images)
        assert np.array_equal(read.proprio, wrote.proprio)
        assert np.array_equal(read.actions, wrote.actions)
        assert np.array_equal(read.pushed, wrote.pushed.astype(bool))


def test_without_pictures_only_what_cannot_be_told_from_the_rest_is_there(tmp_path: Path):
    demo = replace(demonstration(3), full_images=None, wrist_images=None)
    write_part(tmp_path / "demo.hdf5", demo)
    gather([tmp_path / "demo.hdf5"], tmp_path / "all.hdf5", TASK, replace(CONFIG, render=False))
    with h5py.File(tmp_path / "all.hdf5") as source:
        group = source["data/demo_0"]
        assert set(group) == {"actions", "executed_actions", "pushed", "states", "fixtures", "obs"}
        assert set(group["obs"]) == {"ee_states", "gripper_states"}
        read = read_numbers(group)
    assert read.seed == 3
    for name, values in demo.numbers().items():
        assert np.array_equal(read.numbers()[name], values)
    with pytest.raises(ValueError, match=r"without pictures.*rsd-fast render"):
        read_headers(tmp_path / "all.hdf5")


def test_several_processes_read_the_same_in_the_same_order(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rsd_fast.train.read.PARALLEL_FROM", 1)
    headers = read_headers(file) * 6
    for read, expected in zip(read_demos(headers, 2), map(read_demo, headers), strict=True):
        assert np.array_equal(read.images, expected.images) and np.array_equal(read.actions, expected.actions)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(group: h5py.Group, demo: Demonstration) -> None:
        group.create_dataset("actions", data=demo.actions)
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("rsd_fast.train.hdf5.write_demonstration", full_disk)
        write_part(tmp_path / "demo.hdf5", demonstration(0))
    assert not (tmp_path / "demo.hdf5").exists()
    write_part(tmp_path / "demo.hdf5", demonstration(0))
    with pytest.raises(OSError):
        gather([tmp_path / "demo.hdf5", tmp_path / "missing.hdf5"], tmp_path / "all.hdf5", TASK, CONFIG)
    assert not (tmp_path / "all.hdf5").exists()


def test_half_finished_files_are_not_found_as_demonstrations(file: Path):
    parts = file.with_suffix(".parts")
    parts.mkdir()
    write_part(parts / "demo_000009.hdf5", demonstration(9))
    (file.parent / "Stack_demo.tmp").touch()
    assert find_files(file.parent) == [file] == find_files(file)


def test_seeds_are_read_only_from_a_file_of_the_same_settings(file: Path):
    assert read_task_file_seeds(file, CONFIG) == [3, 5]
    assert settings(CONFIG) == {"image_size": SIZE, "push": 0.5, "slips": 0.35, "seed": 3}
    assert settings(replace(CONFIG, render=False)) == {"push": 0.5, "slips": 0.35, "seed": 3}
    with pytest.raises(ValueError, match=r"made with .*'push': 0\.5.*, expected .*'push': 0\.6"):
        read_task_file_seeds(file, DemosConfig(image_size=SIZE, seed=3))
    with h5py.File(file, "r+") as source:
        del source["data"].attrs["settings"]
    with pytest.raises(ValueError, match="unreadable demonstration file"):
        read_task_file_seeds(file, CONFIG)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda demo: demo.__delitem__("actions"), "demo_1 cannot be read .* expected a file in LIBERO's layout"),
        (lambda demo: demo["obs"].__delitem__("eye_in_hand_rgb"), "demo_1 cannot be read"),
        (
            lambda demo: (demo.__delitem__("actions"), demo.create_dataset("actions", data=np.zeros((5, 7)))),
            r"demo_1 has parts of \[5, 7\] steps, expected 7 everywhere",
        ),
        (lambda demo: demo["obs/ee_states"].write_direct(np.full((7, 6), np.nan)), "demo_1 holds NaN"),
    ],
)
def test_a_damaged_demonstration_is_named(file: Path, damage, message: str):
    with h5py.File(file, "r+") as source:
        damage(source["data/demo_1"])
    good, bad = read_headers(file)
    read_demo(good)
    with pytest.raises(ValueError, match=message):
        read_demo(bad)


def test_demonstrations_are_in_the_order_of_their_numbers(tmp_path: Path):
    parts = []
    for seed in range(11):
        parts.append(tmp_path / f"{seed}.hdf5")
        write_part(parts[-1], demonstration(seed, count=2))
    gather(parts, tmp_path / "all.hdf5", TASK, CONFIG)
    assert [header.key for header in read_headers(tmp_path / "all.hdf5")] == [f"demo_{index}" for index in range(11)]
    assert read_task_file_seeds(tmp_path / "all.hdf5", CONFIG) == list(range(11))


def test_public_files_with_quoted_or_listed_instructions_are_read(file: Path):
    for stored in ('"lift the red cube"', list("lift the red cube")):
        with h5py.File(file, "r+") as source:
            source["data"].attrs["problem_info"] = json.dumps({"language_instruction": stored})
        assert read_headers(file)[0].instruction == "lift the red cube"
