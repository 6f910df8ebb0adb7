"""`python -m tests.sim.trajectory`: what the first steps of some episodes come to, in a process without a past."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from rsd_fast.sim.robosuite_suite import SUITE, RobosuiteEnv

STARTS: tuple[dict[str, Any], ...] = ({"seed": 3}, {"options": {"init_state": 5}})
STEPS = 8


def trajectory(env: RobosuiteEnv, start: dict[str, Any]) -> str:
    """A digest of every bit of position, velocity, expert command and observation of the first steps."""
    seen = hashlib.sha256()
    observation, _ = env.reset(**start)
    expert = SUITE.make_expert(env)
    for step in range(STEPS):
        command = expert.act()
        data = env.simulator.sim.data
        for values in (data.qpos, data.qvel, command, *observation.values()):
            seen.update(np.ascontiguousarray(values).tobytes())
        if step % 4 == 3:  # half open, half closed: what the gripper remembers
            command[6] = -command[6]
        observation = env.step(command)[0]
    return seen.hexdigest()


if __name__ == "__main__":
    found = {}
    for task in SUITE.tasks:
        env = SUITE.make_env(task, image_size=96, render=task.name == "Lift")
        found[task.name] = [trajectory(env, start) for start in STARTS]
        env.close()
    print(json.dumps(found))
