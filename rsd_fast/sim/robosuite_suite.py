"""Suite `robosuite`: Lift, Stack and PickPlaceCan from the robosuite 1.4 wheel, whose assets are inside.

Panda arm, OSC_POSE at 20 Hz, the same cameras, state and actions as LIBERO (which is built on robosuite 1.4).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from .cameras import Cameras
from .gl import EGL_PACKAGES, gl_for_import
from .suites import Action, Image, Observation, Task, TaskEnv, action_space, observation_space

if TYPE_CHECKING:
    from .experts.robosuite_experts import PickAndPlace

FULL_CAMERA, WRIST_CAMERA = "agentview", "robot0_eye_in_hand"
FIRST_EVALUATION_SEED = 1_000_000  # demonstrations stay below
CONTROL_HZ = 20


class RobosuiteEnv(TaskEnv):
    """One robosuite task; see `TaskEnv`.

    `reset(seed=s)` is a random start, `reset(options={"init_state": k})` evaluation state k. Both depend on
    nothing but s or k. `reset()` draws the next s, as in gymnasium: after `reset(seed=s)`, always the same ones.
    """

    def __init__(self, task: Task, image_size: int, render: bool) -> None:
        self.task = task
        self.observation_space, self.action_space = observation_space(image_size), action_space()
        self.simulator = self.build(render)
        self.cameras = Cameras(image_size) if render else None
        self.image_size = image_size
        self.steps = 0

    def build(self, render: bool) -> Any:
        """The simulator; `render` says whether pictures of it will be drawn."""
        return make_simulator(self.task.name, render)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode.

        Raises:
            ValueError: a seed or an init state outside its range.
        """
        init_state = (options or {}).get("init_state")
        start = None if seed is None and init_state is None else start_seed(seed, init_state)
        super().reset(seed=seed)
        with numpy_seed(int(self.np_random.integers(FIRST_EVALUATION_SEED)) if start is None else start):
            self.simulator.reset()
        self.forget_gripper()
        self.steps = 0
        return self.observe(), {"success": False, "steps": 0}

    def forget_gripper(self) -> None:
        """Resets what robosuite keeps of the last episode's gripper commands, and would move on from."""
        gripper = self.simulator.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)

    def advance(self, action: Action) -> tuple[float, bool, bool, dict[str, Any]]:
        """See `TaskEnv`; raises ValueError on an action that is not 7 finite numbers."""
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"got action {action!r}, expected 7 finite numbers")
        self.simulator.step(np.clip(action, -1.0, 1.0))
        self.steps += 1
        success = bool(self.simulator._check_success())
        truncated = self.steps >= self.task.max_steps and not success
        return float(success), success, truncated, {"success": success, "steps": self.steps}

    def observe(self) -> Observation:
        """See `TaskEnv`."""
        return {
            "full_image": self._draw(FULL_CAMERA),
            "wrist_image": self._draw(WRIST_CAMERA),
            "state": self.proprio(),
        }

    def proprio(self) -> Float[np.ndarray, "8"]:
        """See `TaskEnv`."""
        return proprio(self.simulator)

    def frame(self) -> Image:
        """See `TaskEnv`."""
        return self._draw(FULL_CAMERA)

    def snapshot(self) -> Float[np.ndarray, " M"]:
        """See `TaskEnv`. A physics step computes the scene and then moves on, so pictures are one of them behind."""
        import mujoco

        model, data = self._mujoco()
        shown = np.array(data.qpos)
        mujoco.mj_integratePos(model, shown, data.qvel, -model.opt.timestep)
        return np.concatenate([[data.time], shown, np.zeros(model.nv)])

    def fixtures(self) -> Float[np.ndarray, "K 7"]:
        """See `TaskEnv`."""
        model, _ = self._mujoco()
        still = standing_bodies(model)
        return np.concatenate([model.body_pos[still], model.body_quat[still]], 1)

    def place(self, snapshot: Float[np.ndarray, " M"], fixtures: Float[np.ndarray, "K 7"]) -> None:
        """See `TaskEnv`."""
        import mujoco

        model, data = self._mujoco()
        still = standing_bodies(model)
        expected = ((1 + model.nq + model.nv,), (len(still), 7))
        if (snapshot.shape, fixtures.shape) != expected:
            raise ValueError(
                f"got a snapshot {snapshot.shape} and fixtures {fixtures.shape}, expected {expected[0]} and "
                f"{expected[1]} of {self.task.name}: they are of another version of its model"
            )
        model.body_pos[still], model.body_quat[still] = fixtures[:, :3], fixtures[:, 3:]
        data.qpos[:] = snapshot[1 : 1 + model.nq]
        # What drawing needs of `mj_forward`; without the collisions it takes a tenth of the time.
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def close(self) -> None:
        """Frees the simulator and its GL context."""
        if self.cameras is not None:
            self.cameras.close()
        self.simulator.close()

    def _draw(self, camera: str) -> Image:
        if self.cameras is None:
            return np.zeros((self.image_size, self.image_size, 3), np.uint8)
        return self.cameras.draw(*self._mujoco(), camera)

    def _mujoco(self) -> tuple[Any, Any]:
        sim = self.simulator.sim
        return sim.model._model, sim.data._data


@dataclass(frozen=True)
class RobosuiteSuite:
    """See `rsd_fast.sim.suites.Suite`."""

    name: str = "robosuite"
    init_states: int = 50
    settling_steps: int = 0
    image_size: int = 128
    tasks: tuple[Task, ...] = (
        Task("robosuite", "Lift", "lift the red cube", 150),
        Task("robosuite", "Stack", "stack the red cube on the green cube", 250),
        Task("robosuite", "PickPlaceCan", "put the can in the lower right bin", 350),
    )

    def prepare(self) -> tuple[str, ...]:
        """See `Suite`."""
        assets_folder()
        return ()

    def status(self) -> str:
        """See `Suite`."""
        assets, tasks = assets_folder(), ", ".join(task.name for task in self.tasks)
        return f"{tasks} (robosuite {version('robosuite')}, assets at {assets})"

    def make_env(self, task: Task, *, image_size: int = 128, render: bool = True) -> RobosuiteEnv:
        """See `Suite`.

        Raises:
            ImportError: robosuite is not installed.
            RuntimeError: no GL library (with `render`).
        """
        return RobosuiteEnv(task, image_size, render)

    def make_expert(self, env: TaskEnv) -> PickAndPlace:
        """See `Suite`."""
        from .experts.robosuite_experts import make_expert

        assert isinstance(env, RobosuiteEnv)
        return make_expert(env)


SUITE = RobosuiteSuite()


def standing_bodies(model: Any) -> Int[np.ndarray, " K"]:
    """Bodies of a MuJoCo model that are fixed to the world: a reset may move them, an episode does not."""
    still = (model.body_parentid == 0) & (model.body_jntnum == 0)
    return np.flatnonzero(still)[1:]  # without the world itself


def start_seed(seed: int | None, init_state: int | None) -> int:
    """The seed of numpy's generator for a random start or for an evaluation state."""
    if init_state is not None:
        if not 0 <= init_state < SUITE.init_states:
            raise ValueError(f"got init_state {init_state}, expected 0 to {SUITE.init_states - 1}")
        return FIRST_EVALUATION_SEED + init_state
    if seed is None or not 0 <= seed < FIRST_EVALUATION_SEED:
        raise ValueError(
            f"got seed {seed} and no init_state, expected a seed from 0 to {FIRST_EVALUATION_SEED - 1}"
        )
    return seed


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Robosuite draws from numpy's global generator: seeds it for the block, and puts it back."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def make_simulator(name: str, render: bool = True) -> Any:
    """The simulator itself, without its cameras and observation tables (they cost as much as the physics)."""
    with gl_for_import(render):
        robosuite = import_robosuite()
    with numpy_seed(0):  # the size of Lift's cube is drawn when the model is built: the same in every process
        simulator = robosuite.make(
            name,
            robots="Panda",
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            control_freq=CONTROL_HZ,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            ignore_done=True,
            hard_reset=False,
        )
    return without_observables(simulator)


def without_observables(simulator: Any) -> Any:
    """The same simulator, whose steps no longer compute observation tables."""
    simulator._update_observables = lambda force=False: None
    simulator._get_observations = lambda force_update=False: {}
    return simulator


def assets_folder() -> Path:
    """Where the installed package keeps its meshes and textures; imports nothing.

    Raises:
        ImportError: it is not installed.
        FileNotFoundError: it has none.
    """
    spec = find_spec("robosuite")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("got no robosuite, expected version 1.4.0: pip install 'rsd-fast[sim]'")
    assets = Path(spec.submodule_search_locations[0], "models", "assets")
    if not assets.is_dir():
        raise FileNotFoundError(f"robosuite has no assets at {assets}: install it anew")
    return assets


def import_robosuite() -> Any:
    """The package.

    Raises:
        ImportError: it is not installed, or a shared library that it needs is not.
    """
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it asks for a private macro file
    try:
        import robosuite
    except ModuleNotFoundError as error:
        raise ImportError(f"got no robosuite ({error}), expected version 1.4.0: pip install 'rsd-fast[sim]'") from error
    except ImportError as error:  # its OpenCV loads libGL and GLib
        raise ImportError(
            f"robosuite cannot be imported ({error}); where a library is missing, on Debian and Ubuntu: "
            f"apt-get install {EGL_PACKAGES}"
        ) from error
    return robosuite


def proprio(simulator: Any) -> np.ndarray:
    """LIBERO's state, float32 [8]: hand position [m], hand axis-angle [rad], the two finger joints [m]."""
    from robosuite.utils.transform_utils import convert_quat, quat2axisangle

    robot, data = simulator.robots[0], simulator.sim.data
    quat = convert_quat(np.array(data.get_body_xquat(robot.robot_model.eef_name)), to="xyzw")
    fingers = [data.qpos[index] for index in robot._ref_gripper_joint_pos_indexes]
    hand = np.array(data.site_xpos[robot.eef_site_id])
    return np.concatenate([hand, quat2axisangle(quat), fingers]).astype(np.float32)
