"""`python -m tests.sim.libero_reference FILE PICTURED`: what LIBERO itself makes of the sample, in a plain loop.

For each suite an environment just built, `seed(0)`, `reset()`, `set_init_state(...)`, ten settling steps and the
actions. Positions after every step go to FILE; of suite PICTURED, also what OpenVLA's evaluation makes of the
observation.
"""

from __future__ import annotations

import sys

import numpy as np

from rsd_fast.sim.libero_env import import_libero
from tests.sim.libero_setup import ACTIONS, IMAGE, SAMPLE, STATE


def main(file: str, pictured: str) -> None:
    envs = import_libero()
    from libero.libero.benchmark import get_benchmark
    from robosuite.utils.transform_utils import quat2axisangle

    found = {}
    for suite, index in SAMPLE.items():
        benchmark = get_benchmark(suite)()
        bddl = benchmark.get_task_bddl_file_path(index)
        if suite == pictured:
            env = envs.OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=IMAGE, camera_widths=IMAGE)
        else:
            env = envs.ControlEnv(bddl_file_name=bddl, use_camera_obs=False, has_offscreen_renderer=False)
        env.seed(0)
        env.reset()
        env.set_init_state(benchmark.get_task_init_states(index)[STATE])
        for _ in range(10):
            env.step([0, 0, 0, 0, 0, 0, -1])
        if suite == pictured:
            # Its own observations are two physics steps old; these are of now.
            now = env.env._get_observations(force_update=True)
            found["full_image"] = now["agentview_image"][::-1, ::-1]
            found["wrist_image"] = now["robot0_eye_in_hand_image"][::-1, ::-1]
            parts = now["robot0_eef_pos"], quat2axisangle(now["robot0_eef_quat"]), now["robot0_gripper_qpos"]
            found["state"] = np.concatenate(parts)
        positions, successes = [], []
        for action in ACTIONS:
            successes.append(env.step(action)[2])
            positions.append(env.sim.data.qpos.copy())
        found[suite], found[f"{suite}_success"] = np.array(positions), np.array(successes)
        found[f"{suite}_languages"] = np.array([task.language for task in benchmark.tasks])
        env.close()
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
