"""Several simulators at once, with gymnasium's vector environments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from .chunked import ChunkedEnv
from .suites import TaskEnv, get_suite, get_task


def make_vector_env(
    suite: str, task: str, *, workers: int, chunk: int, image_size: int = 128
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """`workers` copies of a task, each a `ChunkedEnv`; more than one run in processes of their own.

    Nothing resets by itself: `reset_to` starts episodes, and a member whose episode is over idles.

    Raises:
        ValueError: an unknown suite or task, or fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"got {workers} workers, expected at least 1")
    get_task(get_suite(suite), task)
    makers = [partial(make_chunked_env, suite, task, chunk, image_size)] * workers
    disabled = gymnasium.vector.AutoresetMode.DISABLED
    if workers == 1:
        return gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=disabled)
    # GL contexts and CUDA do not survive a fork.
    return gymnasium.vector.AsyncVectorEnv(
        makers, autoreset_mode=disabled, context="spawn", shared_memory=True
    )


def make_chunked_env(suite: str, task: str, chunk: int, image_size: int) -> ChunkedEnv:
    """One member; its simulator is built in the process that resets it."""
    return ChunkedEnv(partial(make_task_env, suite, task, image_size), chunk, image_size)


def make_task_env(suite: str, task: str, image_size: int) -> TaskEnv:
    """A task's environment by name."""
    found = get_suite(suite)
    return found.make_env(get_task(found, task), image_size=image_size)


def reset_to(
    envs: gymnasium.vector.VectorEnv[Any, Any, Any], init_states: Sequence[int | None]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Starts member i at evaluation state `init_states[i]`; those with None go on as they are.

    Returns:
        observations of all members, and infos of those that were reset.
    """
    chosen = np.array([state is not None for state in init_states])
    set_members(envs, "init_state", init_states)
    observations, infos = envs.reset(options={"reset_mask": chosen})
    return observations, infos


def set_members(envs: gymnasium.vector.VectorEnv[Any, Any, Any], name: str, values: Sequence[Any]) -> None:
    """Sets attribute `name` of member i to `values[i]`."""
    assert isinstance(envs, (gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv))
    envs.set_attr(name, list(values))
