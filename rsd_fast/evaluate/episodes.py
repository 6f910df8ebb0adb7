"""One episode of an evaluation: what is asked for, what happens in it, and the row it becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rsd_fast.sim.suites import Image, Suite, Task
from rsd_fast.sim.vector import Reply

from .config import EXPERT, EvalConfig
from .policies import Deciders
from .records import EpisodeRow, Key, Outcome


@dataclass(frozen=True)
class WorkItem:
    """An episode to run.

    Attributes:
        film: whether to keep a picture of every step.
        attempt: 0 for the first try in this run.
    """

    task: Task
    mode: str
    init_state: int
    seed: int
    film: bool = False
    attempt: int = 0

    @property
    def is_expert(self) -> bool:
        """Whether the suite's scripted expert acts."""
        return self.mode == EXPERT

    @property
    def key(self) -> Key:
        """As in the records."""
        return (self.task.suite, self.task.name, self.mode, self.init_state, self.seed)

    def __str__(self) -> str:
        """For people."""
        return f"{self.task.name} {self.init_state} {self.mode}"


@dataclass(frozen=True)
class RunContext:
    """What all rows of a run have in common; `settings` by mode."""

    settings: dict[str, dict[str, Any]]
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None


@dataclass
class Film:
    """Pictures of an episode: `frames` one a step, `wrist` and `chunks` (its first frame) one a chunk."""

    frames: list[Image] = field(default_factory=list)
    wrist: list[Image] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)


@dataclass
class Episode:
    """A running episode: collects what the policy and the simulator say."""

    item: WorkItem
    infos: list[dict[str, Any]] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)  # of the robot, at every observation
    film: Film = field(default_factory=Film)
    simulator: dict[str, Any] = field(default_factory=dict)  # its last info
    simulator_seconds: float = 0.0

    @property
    def next_seed(self) -> int:
        """Of the draws of the next chunk; the same in every mode, and whatever ran before."""
        item = self.item
        words = f"{item.seed} {item.task.suite} {item.task.name} {item.init_state} {len(self.infos)}"
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "little")

    def observe(self, reply: Reply) -> None:
        """An answer of the simulator."""
        self.simulator = self.simulator | reply.info
        self.simulator_seconds += reply.seconds
        if "error" not in reply.info:
            self.states.append(np.array(reply.state))
        if "frames" in reply.info:
            self.film.frames += list(self.simulator.pop("frames"))

    def look(self, wrist: Image) -> None:
        """The wrist camera before a chunk, of an episode that is filmed."""
        self.film.chunks.append(len(self.film.frames))
        self.film.wrist.append(wrist)

    def row(self, context: RunContext, error: str | None = None) -> EpisodeRow:
        """What is recorded; `error` where something outside the simulator's own code went wrong."""
        error = error or self.simulator.get("error")
        outcome: Outcome = "error" if error else "success" if self.simulator.get("success") else "failure"
        stages = dict.fromkeys(name for info in self.infos for name in info["ms"] if name != "total")
        return EpisodeRow(
            suite=self.item.task.suite,
            task=self.item.task.name,
            instruction=self.item.task.instruction,
            mode=self.item.mode,
            init_state=self.item.init_state,
            seed=self.item.seed,
            outcome=outcome,
            error=error,
            steps=int(self.simulator.get("steps", 0)),
            cap=self.item.task.max_steps,
            passes=[int(info["passes"]) for info in self.infos],
            accepted_layers=[round(float(info["accepted_layers"]), 4) for info in self.infos],
            kept_rates=[[round(rate, 4) for rate in info["kept_rates"]] for info in self.infos],
            match_rates=[[round(rate, 4) for rate in info["match_rates"]] for info in self.infos],
            codes=_digest([info["codes"] for info in self.infos]),
            ms=[round(info["ms"]["total"], 3) for info in self.infos],
            ms_stages={name: [round(info["ms"][name], 3) for info in self.infos] for name in stages},
            simulator_seconds=round(self.simulator_seconds, 3),
            settings=context.settings[self.item.mode],
            machine=context.machine,
            versions=context.versions,
            commit=context.commit,
            aperture=[round(float(np.abs(state[6:8]).sum()), 4) for state in self.states],
            height=[round(float(state[2]), 4) for state in self.states],
        )


def plan(config: EvalConfig, tasks: list[Task]) -> list[WorkItem]:
    """All episodes of a run, those of a pair side by side: both modes then see the machine in the same state."""
    return [
        WorkItem(task, choice.label, state, config.seed, film=state < config.video)
        for task in tasks
        for state in range(config.trials)
        for choice in config.choices
    ]


def protocol(config: EvalConfig, suite: Suite, policies: Deciders, notes: Sequence[str]) -> dict[str, Any]:
    """The part of the settings that is not the policy's; `notes` are the suite's."""
    return {
        "replan": config.replan or policies.chunk,
        "image_size": picture_size(config, suite, policies),
        "settling_steps": suite.settling_steps,
        "batch": config.batch,
        "notes": list(notes),
    }


def picture_size(config: EvalConfig, suite: Suite, policies: Deciders) -> int:
    """Pixels a side of the cameras."""
    return config.image_size or policies.image_size or suite.image_size


def _digest(codes: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for chunk in codes:
        digest.update(np.ascontiguousarray(chunk, np.int32).tobytes())
    return digest.hexdigest()[:16]
