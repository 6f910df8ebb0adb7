"""`rsd-fast eval --ray`: the policy and the simulators are actors of a Ray cluster.

The same scheduler drives them as drives processes of this machine, so the records are the same. Observations go from
simulator to policy through Ray's object store; the runner handles references to them. What fails with a node is asked
again on another one: see `rsd_fast.sim.ray_vector` for simulators; a policy forgets nothing, because it remembers
nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rsd_fast.observation import Observation
from rsd_fast.sim.libero_assets import ASSETS_VARIABLE
from rsd_fast.sim.ray_vector import RaySimulator, ready_actors

from .actions import Gripper
from .config import EvalConfig
from .place import Place
from .policies import Decoded, Policies, load_policies, set_threads


@dataclass(frozen=True)
class Description:
    """What the runner has to know of policies elsewhere; see `Policies`."""

    chunk: int
    gripper: Gripper
    image_size: int | None
    settings: dict[str, dict[str, Any]]


class PolicyActor:
    """Policies in an actor's process; `load` is called there by the first call, and again after a restart."""

    def __init__(self, load: Callable[[], Policies]) -> None:
        self.load = load

    @cached_property
    def policies(self) -> Policies:
        """The policies; an error in loading them is the call's, with its own type."""
        return self.load()

    def describe(self) -> Description:
        """See `Description`."""
        of = self.policies
        return Description(of.chunk, of.gripper, of.image_size, {mode: of.settings(mode) for mode in of.by_mode})

    def decode(self, mode: str, instructions: Sequence[str], seeds: Sequence[int], *seen: Observation) -> Decoded:
        """See `Policies.decode`; Ray replaces references by what they refer to where they are arguments themselves."""
        return self.policies.decode(mode, seen, instructions, seeds)

    def warm_up(self, observation: Observation, instruction: str) -> None:
        """See `Policies.warm_up`."""
        self.policies.warm_up(observation, instruction)


class RayPolicies:
    """A `PolicyActor` from the runner's side; see `Policies`.

    Args:
        load: makes the policies, in the actor.
        cpus, gpus: what the actor uses of its node; it holds half a core less, where simulators fit in.
    """

    gpu: int | None = None  # simulators are elsewhere

    def __init__(self, load: Callable[[], Policies], cpus: int, gpus: int) -> None:
        remote: Any = ray.remote(PolicyActor)
        wanted = remote.options(num_cpus=cpus - 0.5, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)
        self._actor = wanted.remote(load)
        described: Description = _get(self._actor.describe.remote())
        self.chunk, self.gripper, self.image_size = described.chunk, described.gripper, described.image_size
        self._settings = described.settings

    def settings(self, mode: str) -> dict[str, Any]:
        """See `Policies`."""
        return self._settings[mode]

    def decode(
        self, mode: str, observations: Sequence[Any], instructions: Sequence[str], seeds: Sequence[int]
    ) -> Decoded:
        """See `Policies`; observations are references."""
        decoded: Decoded = _get(self._actor.decode.remote(mode, instructions, seeds, *observations))
        return decoded

    def warm_up(self, observation: Observation, instruction: str) -> None:
        """See `Policies`."""
        _get(self._actor.warm_up.remote(observation, instruction))


@contextmanager
def on_ray(
    config: EvalConfig, load: Callable[[EvalConfig], Policies] | None = None
) -> Iterator[tuple[RayPolicies, Place]]:
    """The policies and the simulators of a cluster; `load` makes the former, by default of the checkpoint.

    Raises:
        ValueError: a device that Ray does not give, or more than a node of the cluster has.
        ConnectionError: there is no cluster at the address.
    """
    connected = ray.is_initialized()
    if not connected:
        connect(config.ray or "auto")
    try:
        on_gpu = wants_gpu(config.device)
        there = replace(config, device="cuda" if on_gpu else "cpu", threads=config.threads or 1)
        assert there.threads is not None
        cpus = 1 if on_gpu else there.threads
        require_node(cpus, int(on_gpu))
        policies = RayPolicies(partial(load or load_here, there), cpus, int(on_gpu))
        total = int(ray.cluster_resources().get("CPU", 0))
        simulators = config.workers or max(1, total - cpus)
        nodes = sum(node["Alive"] for node in ray.nodes())
        variables = {name: os.environ[name] for name in (ASSETS_VARIABLE,) if name in os.environ}
        yield (
            policies,
            Place(
                partial(RaySimulator, environment=variables),
                simulators,
                {"cores": total, "workers": simulators, "threads": there.threads, "nodes": nodes},
                ready_actors,
            ),
        )
    finally:
        if not connected:
            ray.shutdown()


def connect(address: str) -> None:
    """Joins the cluster at `address`; `local` starts one on this machine, `auto` finds one that runs here."""
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def load_here(config: EvalConfig) -> Policies:
    """In the actor's process."""
    set_threads(config)
    return load_policies(config)


def wants_gpu(device: str) -> bool:
    """Whether the policy gets a GPU.

    Raises:
        ValueError: a certain GPU is asked for.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"got --device {device} with --ray, expected auto, cpu or cuda: Ray chooses the GPU")
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)


def require_node(cpus: int, gpus: int) -> None:
    """Raises ValueError if no node has what the policy needs: Ray would wait for one for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(of.get("CPU", 0) >= cpus and of.get("GPU", 0) >= gpus for of in nodes):
        have = ", ".join(f"{of.get('CPU', 0):g} CPUs and {of.get('GPU', 0):g} GPUs" for of in nodes)
        raise ValueError(f"the policy needs {cpus} CPUs and {gpus} GPUs of one node; the cluster's have {have}")


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error  # what the policy itself raised
    except RayError as error:
        raise RuntimeError(f"the policy's actor failed: {error}") from error
