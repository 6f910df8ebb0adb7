"""Suite `robosuite`: spaces, starts, actions, the state's layout, what the cameras show."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from rsd_fast.sim.robosuite_suite import FIRST_EVALUATION_SEED, SUITE, RobosuiteEnv, start_seed
from tests.sim.conftest import IMAGE, TASKS
from tests.sim.trajectory import STARTS, trajectory

STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])


@pytest.fixture(params=TASKS)
def env(request: pytest.FixtureRequest, physics) -> RobosuiteEnv:
    return physics(request.param)


def positions(env: RobosuiteEnv) -> np.ndarray:
    return env.simulator.sim.data.qpos.copy()


def test_gymnasium_s_own_checker_has_no_complaint(seeing: RobosuiteEnv):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box observation space m.*imum value")  # a state has no bounds
        warnings.filterwarnings("ignore", message=".*alternative render modes")  # it is not registered by name
        warnings.simplefilter("error", append=True)
        check_env(seeing)


def test_observations_lie_in_their_space(env: RobosuiteEnv):
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["full_image"].shape == observation["wrist_image"].shape == (IMAGE, IMAGE, 3)
    assert not observation["full_image"].any()  # no cameras: black
    assert info == {"success": False, "steps": 0}
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False, "steps": 1})


def test_episodes_are_the_same_bits_in_another_process_and_after_other_episodes(seeing: RobosuiteEnv, physics):
    code = [sys.executable, "-m", "tests.sim.trajectory"]
    process = subprocess.Popen(code, stdout=subprocess.PIPE, text=True)
    ours: dict[str, list[str]] = {}
    for name in TASKS:
        env = seeing if name == "Lift" else physics(name)
        env.reset(seed=11)
        for _ in range(7):  # a past with a closed gripper and a moved arm
            env.advance(np.ones(7))
        ours[name] = [trajectory(env, start) for start in STARTS]
    theirs, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(theirs) == ours
    assert len({digest for digests in ours.values() for digest in digests}) == len(TASKS) * len(STARTS)


@given(
    st.integers(0, FIRST_EVALUATION_SEED - 1),
    st.integers(0, SUITE.init_states - 1),
    st.one_of(st.none(), st.integers(0, 10)),
)
def test_no_demonstration_starts_in_an_evaluation_state(seed: int, init_state: int, with_state: int | None):
    assert start_seed(seed, None) < FIRST_EVALUATION_SEED <= start_seed(with_state, init_state)


def test_evaluation_states_differ_from_one_another_and_from_the_first_demonstrations(env: RobosuiteEnv):
    starts = []
    for k in range(20):
        env.reset(options={"init_state": k})
        starts.append(positions(env))
        env.reset(seed=k)
        starts.append(positions(env))
    assert len({start.tobytes() for start in starts}) == 40


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"seed": FIRST_EVALUATION_SEED}, r"got seed 1000000 .* expected a seed from 0 to 999999"),
        ({"options": {"init_state": 50}}, "got init_state 50, expected 0 to 49"),
        ({"options": {"init_state": -1}}, "got init_state -1, expected 0 to 49"),
    ],
)
def test_other_starts_are_refused(physics, start: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        physics("Lift").reset(**start)


def test_a_reset_without_a_seed_goes_on_from_the_last_one(physics):
    env = physics("Lift")
    starts = []
    for _ in range(2):
        env.reset(seed=4)
        for _ in range(2):
            env.reset()
            starts.append(positions(env).tobytes())
    assert starts[:2] == starts[2:] and starts[0] != starts[1]


@pytest.mark.parametrize(
    "action",
    [np.zeros(6), np.zeros((1, 7)), [0, 0, 0, 0, 0, 0, float("nan")], [float("inf")] + 6 * [0], 0.0, "left"],
    ids=["six", "batched", "nan", "inf", "scalar", "text"],
)
def test_bad_actions_are_refused_and_move_nothing(physics, action: Any):
    env = physics("Lift")
    env.reset(seed=0)
    before = positions(env)
    with pytest.raises(ValueError):
        env.step(action)
    assert np.array_equal(positions(env), before) and env.steps == 0


def test_actions_beyond_the_range_are_those_at_its_end(physics):
    env = physics("Lift")
    ends = []
    for size in (1.0, 3.0):
        env.reset(seed=0)
        env.advance(size * np.array([1, -1, 1, 0, 0, 0, 1]))
        ends.append(positions(env))
    assert np.array_equal(*ends)


def test_an_action_of_one_moves_the_hand_its_way_and_closes_the_gripper(physics):
    env = physics("Lift")
    for axis in range(3):
        before = env.reset(seed=0)[0]["state"]
        action = STILL.copy()
        action[axis] = 1.0
        for _ in range(4):
            after = env.step(action)[0]["state"]
        moved = after[:3] - before[:3]
        assert moved[axis] > 0.03 and np.abs(np.delete(moved, axis)).max() < 0.01
    opened = after[6] - after[7]
    for _ in range(15):
        after = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))[0]["state"]
    assert after[6] - after[7] < 0.2 * opened


def test_the_state_is_libero_s(env: RobosuiteEnv):
    """Position, axis-angle, fingers, as OpenVLA-OFT's evaluation makes them of robosuite's observation."""
    env.reset(seed=2)
    for _ in range(5):
        state = env.step(np.array([0.3, -0.2, 0.4, 0.5, -0.6, 0.4, 1.0]))[0]["state"]
    simulator = env.simulator
    type(simulator)._update_observables(simulator, force=True)
    theirs = type(simulator)._get_observations(simulator)
    x, y, z, w = theirs["robot0_eef_quat"]
    angle = 2 * np.arccos(w)
    turn = np.array([x, y, z]) / np.sqrt(1 - w * w) * angle
    expected = np.concatenate([theirs["robot0_eef_pos"], turn, theirs["robot0_gripper_qpos"]])
    assert state.dtype == np.float32
    assert state == pytest.approx(expected, abs=1e-5)


def test_the_step_cap_truncates_and_success_terminates(physics):
    env = physics("Lift")
    env.reset(seed=0)
    endings = [env.advance(STILL)[1:3] for _ in range(env.task.max_steps)]
    assert endings[:-1] == [(False, False)] * (env.task.max_steps - 1) and endings[-1] == (False, True)
    env.reset(seed=0)
    env.simulator.sim.data.set_joint_qpos("cube_joint0", [0, 0, 1.0, 1, 0, 0, 0])
    reward, terminated, truncated, info = env.advance(STILL)
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True, "steps": 1})


def test_building_and_playing_leave_the_global_generators_alone(physics):
    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state()[1].tobytes(), np.random.get_state()[2], random.getstate()
    SUITE.make_env(SUITE.tasks[0], render=False).close()
    for name in TASKS:
        env = physics(name)
        env.reset(seed=1)
        env.step(SUITE.make_expert(env).act())
        env.reset()
        with pytest.raises(ValueError):
            env.reset(seed=-1)
    assert before == (np.random.get_state()[1].tobytes(), np.random.get_state()[2], random.getstate())


# ---- cameras


def project(env: RobosuiteEnv, camera: str, point: np.ndarray) -> tuple[float, float]:
    """Column and row of a point in an upright picture: a pinhole that looks along its -z, with y up."""
    sim = env.simulator.sim
    index = sim.model.camera_name2id(camera)
    x, y, z = sim.data.cam_xmat[index].reshape(3, 3).T @ (point - sim.data.cam_xpos[index])
    focal = IMAGE / 2 / np.tan(np.radians(sim.model.cam_fovy[index]) / 2)
    return IMAGE / 2 - focal * x / z, IMAGE / 2 + focal * y / z


@pytest.mark.parametrize("seed", range(3))
def test_the_red_cube_is_drawn_where_it_is(seeing: RobosuiteEnv, seed: int):
    observation, _ = seeing.reset(seed=seed)
    cube = seeing.simulator.sim.data.body_xpos[seeing.simulator.cube_body_id]
    for image, camera in (("full_image", "agentview"), ("wrist_image", "robot0_eye_in_hand")):
        red, green, blue = observation[image].astype(int).transpose(2, 0, 1)
        rows, columns = np.nonzero((red > 90) & (red > 2 * green) & (red > 2 * blue))
        assert len(rows) > 10, f"no red cube in {image}"
        column, row = project(seeing, camera, cube)
        assert abs(columns.mean() + 0.5 - column) < 4 and abs(rows.mean() + 0.5 - row) < 4


def test_a_frame_is_the_third_person_picture(seeing: RobosuiteEnv):
    observation, _ = seeing.reset(seed=0)
    assert np.array_equal(seeing.frame(), observation["full_image"])
    assert np.array_equal(seeing.render(), observation["full_image"])
    assert not np.array_equal(observation["wrist_image"], observation["full_image"])


def test_drawing_changes_nothing_of_the_physics(seeing: RobosuiteEnv, physics):
    ends = []
    for env in (seeing, physics("Lift")):
        env.reset(seed=6)
        for _ in range(5):
            env.step(np.array([0.5, 0.1, -0.4, 0.2, 0, 0, 1.0]))
        ends.append(positions(env))
    assert np.array_equal(*ends)
