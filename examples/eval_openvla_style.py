"""LIBERO evaluation with a loop of its own, in the style of openvla-oft's run_libero_eval.py.

The environment, the loop and the observation are LIBERO's and OpenVLA's; the policy is an `RSDInferenceEngine`. If you
have such a script, two things change: `import_libero()` before anything of LIBERO is imported, and the engine's
`generate_action` where the model was called.

    python examples/eval_openvla_style.py --checkpoint FOLDER --task-suite-name libero_spatial

`rsd-fast eval --suite libero_spatial` starts from the same states, runs many episodes at once, and reports them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.sim.libero_env import import_libero
from rsd_fast.sim.libero_suite import load_states

TASK_MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of an evaluation."""

    checkpoint: str
    """Policy folder, or hub id."""
    task_suite_name: str = "libero_spatial"
    """One of the five suites."""
    tasks: tuple[int, ...] = ()
    """Numbers of tasks; default all."""
    num_trials_per_task: int = 50
    """Episodes a task, at the benchmark's initial states 0, 1, 2, ..."""
    num_steps_wait: int = 10
    """Steps in which objects settle before the policy acts."""
    max_steps: int | None = None
    """Step cap; default that of the suite."""
    env_img_res: int = 256
    """Pixels a side of the cameras."""
    mode: Literal["sequential", "rsd", "jacobi", "parallel"] = "rsd"
    """How chunks are decoded."""
    gripper: Literal["simulator", "openvla"] = "simulator"
    """What the policy's last number means; see `process_action`."""
    device: str = "auto"
    """Of the policy."""


def get_libero_env(benchmark: Any, task_id: int, resolution: int) -> Any:
    """The environment of a task."""
    return import_libero().OffScreenRenderEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(task_id),
        camera_heights=resolution,
        camera_widths=resolution,
    )


def prepare_observation(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the engine takes, from what LIBERO returns.

    LIBERO's pictures have their rows bottom up. Turning them by 180 degrees, as OpenVLA does, makes them upright (and
    mirrors them, in the data that its policies learn from as well).
    """
    from robosuite.utils.transform_utils import quat2axisangle

    hand, quat = obs["robot0_eef_pos"], obs["robot0_eef_quat"].copy()
    return {
        "full_image": obs["agentview_image"][::-1, ::-1],
        "wrist_image": obs["robot0_eye_in_hand_image"][::-1, ::-1],
        "state": np.concatenate([hand, quat2axisangle(quat), obs["robot0_gripper_qpos"]]),
    }


def process_action(action: np.ndarray, gripper: str) -> np.ndarray:
    """An action as the simulator takes it: six deltas, and a gripper command from -1 (open) to +1 (close).

    Policies trained on demonstrations of this package speak the simulator's language already. Those of OpenVLA say
    from 0 (close) to 1 (open), as their data sets do: brought to [-1, 1], made -1 or 1, and negated.
    """
    if gripper == "openvla":
        action = action.copy()
        action[-1] = -np.sign(2 * action[-1] - 1)
    return action


def run_episode(
    cfg: GenerateConfig, env: Any, engine: RSDInferenceEngine, task_description: str, initial_state: np.ndarray
) -> bool:
    """Whether the policy succeeds from an initial state; it executes every chunk open loop."""
    env.seed(0)  # initial states leave out the poses of fixtures, which a reset draws
    env.reset()
    obs = env.set_init_state(initial_state)
    for _ in range(cfg.num_steps_wait):
        obs, *_ = env.step([0, 0, 0, 0, 0, 0, -1])
    actions: deque[np.ndarray] = deque()
    for _ in range(cfg.max_steps or TASK_MAX_STEPS[cfg.task_suite_name]):
        if not actions:
            chunk, _info = engine.generate_action(prepare_observation(obs), task_description)
            actions.extend(chunk)
        obs, _, done, _ = env.step(process_action(actions.popleft(), cfg.gripper))
        if done:
            return True
    return False


def eval_libero(cfg: GenerateConfig) -> float:
    """The success rate over all episodes."""
    import_libero()
    from libero.libero import get_libero_path
    from libero.libero.benchmark import get_benchmark

    benchmark = get_benchmark(cfg.task_suite_name)()
    folder = Path(get_libero_path("init_states"))
    engine = RSDInferenceEngine.from_pretrained(cfg.checkpoint, mode=cfg.mode, device=cfg.device)
    successes = []
    for task_id in cfg.tasks or range(benchmark.get_num_tasks()):
        task = benchmark.get_task(task_id)
        initial_states = load_states(folder / task.problem_folder / task.init_states_file)
        env = get_libero_env(benchmark, task_id, cfg.env_img_res)
        for episode in range(cfg.num_trials_per_task):
            successes.append(run_episode(cfg, env, engine, task.language, initial_states[episode]))
            print(f"{task.language}: episode {episode}, success {successes[-1]}, so far {np.mean(successes):.1%}")
        env.close()
    stats = engine.stats()
    latency = stats["latency_ms"]["total"]["p50"]
    print(f"success {np.mean(successes):.1%} of {len(successes)}, {stats['mean_passes']:.2f} passes, {latency:.1f} ms")
    return float(np.mean(successes))


if __name__ == "__main__":
    eval_libero(tyro.cli(GenerateConfig))
