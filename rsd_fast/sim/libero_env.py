"""One LIBERO task as an environment, by the protocol of OpenVLA-OFT."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .gl import gl_for_import
from .libero_assets import WHAT_TO_DO, find_assets
from .libero_package import import_envs, use_assets
from .robosuite_suite import CONTROL_HZ, RobosuiteEnv, numpy_seed, without_observables
from .suites import Image, Observation, Task, TaskEnv

SETTLING_STEPS = 10
SETTLING_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
FIXTURE_SEED = 0  # an init state does not hold the poses of stove, cabinets and so on: they are drawn with this seed
PLACEMENTS = 100  # attempts at a random start in which nothing collides
MISSING = "Error opening file"  # how MuJoCo's ValueError says that a mesh or a texture is not there
SEEDS = 2**32  # of numpy's generator


class LiberoEnv(RobosuiteEnv):
    """See `TaskEnv`.

    `reset(options={"init_state": k})` is the benchmark's initial state k: every bit is that of a LIBERO environment
    just built, after `seed(0)`, `reset()` and `set_init_state(k)`. `reset(seed=s)` is a random start that depends on
    nothing but s. Both then make the settling steps, which do not count.

    Pictures are what OpenVLA and its data sets show: LIBERO's, turned by 180 degrees. LIBERO returns the rows bottom
    up, so a turned picture is upright and mirrored: what is on the robot's left is on the left.

    Args:
        task: one of LIBERO's.
        bddl: its file.
        load_states: reads its initial states, float64 `[50, N]`; called by the first reset to one.
        image_size: pixels a side.
        render: whether pictures are drawn; without, no GL library is needed.

    Raises:
        ImportError: LIBERO is not installed.
        FileNotFoundError: it has no assets, or not those of this task.
        RuntimeError: no GL library (with `render`).
    """

    def __init__(
        self,
        task: Task,
        bddl: Path,
        load_states: Callable[[], Float[np.ndarray, "50 N"]],
        image_size: int,
        render: bool,
    ) -> None:
        self._bddl, self._load_states = bddl, load_states
        super().__init__(task, image_size, render)

    def build(self, render: bool) -> Any:
        """See `RobosuiteEnv`."""
        simulator = make_simulator(self._bddl, render)
        self._openings = list(simulator.object_property_initializers)
        return simulator

    @cached_property
    def states(self) -> Float[np.ndarray, "50 N"]:
        """The benchmark's initial states: time, positions and velocities.

        Raises:
            ValueError: they are of another version of the task's model.
        """
        states, model = self._load_states(), self.simulator.sim.model
        if states.shape[1] != 1 + model.nq + model.nv:
            raise ValueError(
                f"got initial states of {states.shape[1]} numbers, expected the {1 + model.nq + model.nv} of "
                f"{self.task.name}: the assets are not those of this libero"
            )
        return states

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode.

        Raises:
            ValueError: a seed or an init state outside its range.
        """
        init_state = (options or {}).get("init_state")
        if init_state is not None and not 0 <= init_state < len(self.states):
            raise ValueError(f"got init_state {init_state}, expected 0 to {len(self.states) - 1}")
        if seed is not None and not 0 <= seed < SEEDS:
            raise ValueError(f"got seed {seed}, expected 0 to {SEEDS - 1}")
        TaskEnv.reset(self, seed=seed)
        if init_state is not None:
            with numpy_seed(FIXTURE_SEED):
                self._restart(hard=False)
            self._set_state(self.states[init_state])
        else:
            with numpy_seed(int(self.np_random.integers(SEEDS)) if seed is None else seed):
                self._restart(hard=True)  # without, some objects are put where the fixtures were before
        for _ in range(SETTLING_STEPS):
            self.simulator.step(SETTLING_ACTION)
        self.steps = 0
        return self.observe(), {"success": False, "steps": 0}

    def place(self, snapshot: Float[np.ndarray, " M"], fixtures: Float[np.ndarray, "K 7"]) -> None:
        """See `TaskEnv`."""
        super().place(snapshot, fixtures)
        self.simulator._post_process()  # whether the stove glows

    def _restart(self, hard: bool) -> None:
        """What LIBERO's reset does; `hard` compiles the model anew, which takes ten times as long."""
        from robosuite.utils.errors import RandomizationError

        simulator = self.simulator
        simulator.hard_reset = hard
        for _ in range(PLACEMENTS):
            # Each compilation lists anew which drawers are open and which stoves are on, and each listing draws
            # numbers. The first reset of a new environment has two, and so has every reset here.
            simulator.object_property_initializers[:] = self._openings * (1 if hard else 2)
            try:
                simulator.reset()
                break
            except RandomizationError:
                continue
        else:
            raise RuntimeError(f"got no placement of {self.task.name} without collisions in {PLACEMENTS} attempts")
        self.forget_gripper()

    def _set_state(self, state: Float[np.ndarray, "N"]) -> None:
        simulator = self.simulator
        simulator.sim.set_state_from_flattened(state)
        simulator.sim.forward()
        simulator._check_success()
        simulator._post_process()  # whether the stove glows

    def _draw(self, camera: str) -> Image:
        return np.ascontiguousarray(super()._draw(camera)[:, ::-1])


def import_libero(render: bool = True) -> Any:
    """LIBERO's module of environments, `ControlEnv` and `OffScreenRenderEnv`; for scripts with loops of their own, too.

    It asks nothing at the keyboard, and reads the assets that `find_assets` finds.

    Args:
        render: whether pictures will be drawn; without, no GL library is needed.

    Raises:
        As `LiberoEnv`.
    """
    with gl_for_import(render):
        envs = import_envs()
    use_assets(find_assets())
    return envs


def make_simulator(bddl: Path, render: bool) -> Any:
    """LIBERO's simulator of a BDDL file, without its cameras and observation tables.

    Raises:
        As `LiberoEnv`.
    """
    envs, assets = import_libero(render), find_assets()
    try:
        with numpy_seed(FIXTURE_SEED):
            wrapper = envs.ControlEnv(
                bddl_file_name=str(bddl),
                control_freq=CONTROL_HZ,
                use_camera_obs=False,
                has_offscreen_renderer=False,
                ignore_done=True,
                hard_reset=False,
            )
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and MISSING not in str(error):
            raise
        raise FileNotFoundError(
            f"got assets in {assets} that lack some of task {bddl.stem} ({error}), expected complete ones; {WHAT_TO_DO}"
        ) from error
    return without_observables(wrapper.env)
