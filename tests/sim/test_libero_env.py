"""One task of every LIBERO suite in the real simulator, against LIBERO itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsd_fast.sim import libero_assets
from rsd_fast.sim.libero_env import SETTLING_STEPS, LiberoEnv
from rsd_fast.sim.suites import get_suite
from tests.sim.libero_setup import ACTIONS, IMAGE, SAMPLE, STATE, libero, sample_task

PICTURED = "libero_10"
START = {"init_state": STATE}


@pytest.fixture(scope="module")
def assets() -> Iterator[Path]:
    with libero() as folder:
        yield folder


@pytest.fixture(scope="module")
def reference(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """See `libero_reference`."""
    file = tmp_path_factory.mktemp("libero") / "reference.npz"
    command = [sys.executable, "-m", "tests.sim.libero_reference", str(file), PICTURED]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(file) as found:
        return dict(found)


@pytest.fixture(scope="module", params=SAMPLE)
def env(request: pytest.FixtureRequest, assets: Path) -> Iterator[LiberoEnv]:
    made = make_env(request.param, render=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def seeing(assets: Path) -> Iterator[LiberoEnv]:
    made = make_env("libero_object")
    yield made
    made.close()


def make_env(suite: str, render: bool = True) -> LiberoEnv:
    return get_suite(suite).make_env(sample_task(suite), image_size=IMAGE, render=render)


def rollout(env: LiberoEnv) -> np.ndarray:
    positions = []
    for action in ACTIONS:
        env.advance(action)
        positions.append(env.simulator.sim.data.qpos.copy())
    return np.array(positions)


# ---- the same as LIBERO


def test_episodes_are_those_of_a_plain_libero_loop_to_the_bit(env: LiberoEnv, reference: dict[str, np.ndarray]):
    """In another process; here after a random start and another episode in the same simulator."""
    for options in (None, {"init_state": 3}, START):
        env.reset(seed=1 if options is None else None, options=options)
        positions = rollout(env)
    assert np.array_equal(positions, reference[env.task.suite])
    assert not reference[f"{env.task.suite}_success"].any()


def test_observations_are_what_openvla_makes_of_libero_s(assets: Path, reference: dict[str, np.ndarray]):
    env = make_env(PICTURED)
    observation, info = env.reset(options=START)
    env.close()
    assert info == {"success": False, "steps": 0}
    assert np.array_equal(observation["full_image"], reference["full_image"])
    assert np.array_equal(observation["wrist_image"], reference["wrist_image"])
    np.testing.assert_array_equal(observation["state"], reference["state"].astype(np.float32))


@pytest.mark.parametrize("suite", SAMPLE)
def test_instructions_are_those_of_the_benchmark(reference: dict[str, np.ndarray], suite: str):
    assert [task.instruction for task in get_suite(suite).tasks] == reference[f"{suite}_languages"].tolist()


# ---- resets


def test_an_init_state_is_set_exactly_and_then_settles(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch):
    before: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    step = env.simulator.step

    def spy(action: np.ndarray) -> None:
        before.append(env.simulator.sim.get_state().flatten())
        actions.append(action)
        step(action)

    monkeypatch.setattr(env.simulator, "step", spy)
    observation, info = env.reset(options={"init_state": 49})
    assert np.array_equal(before[0], env.states[49])
    assert np.array_equal(actions, [[0, 0, 0, 0, 0, 0, -1]] * SETTLING_STEPS)
    assert get_suite(env.task.suite).settling_steps == SETTLING_STEPS == 10
    assert info["steps"] == 0  # settling does not count
    assert env.observation_space.contains(observation)


def test_random_starts_depend_on_the_seed_alone(env: LiberoEnv):
    starts = {}
    for seed in (5, 6, 5):
        env.reset(seed=seed)
        now = env.simulator.sim.data.qpos.copy()
        assert np.array_equal(starts.setdefault(seed, now), now)
    assert not np.array_equal(starts[5], starts[6])
    assert all(not np.array_equal(state[1 : 1 + len(now)], now) for state in env.states for now in starts.values())


def test_starts_that_do_not_exist(seeing: LiberoEnv):
    for state in (50, -1):
        with pytest.raises(ValueError, match=f"got init_state {state}, expected 0 to 49"):
            seeing.reset(options={"init_state": state})
    with pytest.raises(ValueError, match="got seed -1, expected 0 to 4294967295"):
        seeing.reset(seed=-1)


def test_an_episode_ends_at_the_step_cap(seeing: LiberoEnv):
    seeing.reset(options={"init_state": 0})
    seeing.steps = seeing.task.max_steps - 2
    assert seeing.advance(np.zeros(7))[1:3] == (False, False)
    assert seeing.advance(np.zeros(7))[1:3] == (False, True)


# ---- pictures and actions


def test_pictures_are_upright_and_mirrored(seeing: LiberoEnv):
    """What goes up in the world goes up in the picture; what is on the robot's left is on its left."""
    seeing.reset(options={"init_state": 0})
    data, thing = seeing.simulator.sim.data, seeing.simulator.objects_dict["basket_1"].joints[-1]
    resting = data.get_joint_qpos(thing).copy()

    def place(x: float, y: float, z: float) -> np.ndarray:
        data.set_joint_qpos(thing, resting + np.array([x, y, z, 0, 0, 0, 0]))
        seeing.simulator.sim.forward()
        return seeing.observe()["full_image"].astype(int)

    gone = place(0, 0, 50)
    row, column = centroid(place(0, 0, 0) - gone)
    row_up, _ = centroid(place(0, 0, 0.1) - gone)
    _, column_left = centroid(place(0, 0.1, 0) - gone)  # the robot looks along x, so y is to its left
    assert row_up < row - 3
    assert column_left < column - 3


def centroid(difference: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(np.abs(difference).max(axis=2) > 20)
    assert len(rows) > 20
    return float(rows.mean()), float(columns.mean())


def test_minus_one_opens_the_gripper_and_one_closes_it(seeing: LiberoEnv):
    seeing.reset(options={"init_state": 0})
    opening = []
    for gripper in (1.0, -1.0):
        for _ in range(10):
            seeing.advance(np.array([0, 0, 0, 0, 0, 0, gripper]))
        left, right = seeing.observe()["state"][6:]
        opening.append(left - right)
    assert opening[0] < 0.01 < 0.06 < opening[1]


def test_without_pictures_they_are_black(assets: Path):
    env = make_env("libero_object", render=False)
    observation, _ = env.reset(options={"init_state": 0})
    env.close()
    assert not observation["full_image"].any() and not observation["wrist_image"].any()
    assert observation["full_image"].shape == (IMAGE, IMAGE, 3)


# ---- assets


def test_a_task_whose_assets_are_incomplete(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in libero_assets.FOLDERS:  # no textures
        (tmp_path / name).symlink_to(assets / name)
    monkeypatch.setenv(libero_assets.ASSETS_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"lack some of task pick_up_the_alphabet_soup.*textures.*set RSD_FAST"):
        make_env("libero_object", render=False)


def test_states_of_another_model_are_refused(seeing: LiberoEnv, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(seeing.__dict__, "states", raising=False)
    monkeypatch.setattr(seeing, "_load_states", lambda: np.zeros((50, 12)))
    with pytest.raises(ValueError, match="got initial states of 12 numbers, expected the"):
        seeing.reset(options={"init_state": 0})
