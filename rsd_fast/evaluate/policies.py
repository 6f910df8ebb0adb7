"""The policy of an evaluation: one engine a mode, all on the same weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float

from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import PolicyParts, load_policy, resolve_checkpoint
from rsd_fast.models.draft import load_draft
from rsd_fast.models.streaming import choose_device
from rsd_fast.observation import Observation

from .actions import Gripper
from .config import EXPERT, EvalConfig, ModeChoice, usable_cores

EXPERT_CHUNK = 8  # control steps between two looks where no policy says how many
OPENVLA_PICTURES = 256  # pixels a side of the data that OpenVLA's policies were trained on


Decoded = tuple[Float[np.ndarray, "B T 7"], list[dict[str, Any]]]


class Policy(Protocol):
    """What the runner asks of an engine."""

    def generate_actions(self, observations: Sequence[Observation], instructions: Sequence[str]) -> Decoded:
        """See `RSDInferenceEngine.generate_actions`."""
        ...

    def describe(self) -> dict[str, Any]:
        """See `RSDInferenceEngine.describe`."""
        ...

    def reseed(self, seed: int) -> None:
        """See `RSDInferenceEngine.reseed`."""
        ...


class Deciders(Protocol):
    """What the runner asks of all policies together: `Policies` in this process, or elsewhere."""

    chunk: int
    gripper: Gripper
    image_size: int | None
    gpu: int | None

    def settings(self, mode: str) -> dict[str, Any]:
        """See `Policies`."""
        ...

    def decode(
        self, mode: str, observations: Sequence[Any], instructions: Sequence[str], seeds: Sequence[int]
    ) -> Decoded:
        """See `Policies`."""
        ...

    def warm_up(self, observation: Observation, instruction: str) -> None:
        """See `Policies`."""
        ...


@dataclass
class Policies:
    """Policies by label of their mode; none are needed where only the expert acts.

    Attributes:
        by_mode: see above.
        origin: what they were made of, for the records.
        drafts: by label of the modes that have one, what tells the draft's weights from others.
        gripper: what their actions say of it.
        image_size: pixels a side of the pictures they were trained on; None where any will do.
        gpu: torch's index of theirs; None on the CPU.
        chunk: actions of a chunk.
        sampling: the modes that draw.
    """

    by_mode: dict[str, Policy]
    origin: dict[str, Any] = field(default_factory=dict)
    drafts: dict[str, str] = field(default_factory=dict)
    gripper: Gripper = "simulator"
    image_size: int | None = None
    gpu: int | None = None
    chunk: int = field(init=False)
    sampling: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Keeps what every call asks for."""
        described = {mode: policy.describe() for mode, policy in self.by_mode.items()}
        self.chunk = next((of["chunk"] for of in described.values()), EXPERT_CHUNK)
        self.sampling = frozenset(mode for mode, of in described.items() if of["temperature"] > 0)

    def settings(self, mode: str) -> dict[str, Any]:
        """What makes episodes of a mode comparable."""
        described = {name: value for name, value in self.by_mode[mode].describe().items() if name != "versions"}
        draft = {"draft_weights": self.drafts[mode]} if mode in self.drafts else {}
        return {**self.origin, **draft, **described, "gripper": self.gripper}

    def decode(
        self, mode: str, observations: Sequence[Observation], instructions: Sequence[str], seeds: Sequence[int]
    ) -> Decoded:
        """One call, timed.

        Args:
            mode: whose policy decides.
            observations, instructions: of the chunks.
            seeds: of their draws. A policy that samples decodes chunk by chunk, so that the draws of one depend on
                nothing but its seed.

        Returns:
            as `generate_actions`; `info["ms"]` has the stage `inputs` too, so that stages sum to `total`, the whole
            call.
        """
        policy = self.by_mode[mode]
        if mode not in self.sampling or len(seeds) == 1:
            policy.reseed(seeds[0])
            return _timed(policy, observations, instructions)
        single = [self.decode(mode, [o], [i], [s]) for o, i, s in zip(observations, instructions, seeds, strict=True)]
        return np.concatenate([actions for actions, _ in single]), [info for _, infos in single for info in infos]

    def warm_up(self, observation: Observation, instruction: str) -> None:
        """One chunk of each mode, so that no episode pays for first-time work."""
        for policy in self.by_mode.values():
            policy.generate_actions([observation], [instruction])


def load_policies(config: EvalConfig) -> Policies:
    """Loads the checkpoint once; the engines of all modes share its weights. The expert needs none.

    Raises:
        FileNotFoundError: no such checkpoint, or a part of it is missing.
        ValueError: settings that do not fit the checkpoint, or each other.
        RuntimeError: a GPU that is not there.
    """
    choices = [choice for choice in config.choices if not choice.is_expert]
    if not choices:
        return Policies({})
    folder = resolve_checkpoint(config.policy)
    parts = load_policy(folder, draft=None, device=config.device)
    drafts: dict[str, PolicyParts] = {}
    engines: dict[str, RSDInferenceEngine] = {}
    for choice in choices:
        if choice.draft and choice.draft not in drafts:
            drafts[choice.draft] = _with_draft(parts, folder, choice.draft)
        own = drafts[choice.draft] if choice.draft else parts
        engines[choice.label] = make_engine(own, choice, config)
    device = engines[choices[0].label].device
    openvla = parts.main.config.prompt is not None  # ours are told the bare instruction
    return Policies(
        dict(engines),
        # A draft that is trained anew makes no other policy of what main decodes without it.
        {"checkpoint": config.policy, "weights": fingerprint(folder, ("codec", "main"))},
        {choice.label: fingerprint(folder, (f"draft-{choice.draft}",)) for choice in choices if choice.draft},
        gripper=config.gripper if config.gripper != "auto" else "openvla" if openvla else "simulator",
        image_size=OPENVLA_PICTURES if openvla else None,
        gpu=(device.index or 0) if device.type == "cuda" else None,
    )


def expert_settings(chunk: int) -> dict[str, Any]:
    """What `Policies.settings` is for the scripted expert; it acts in the simulator's process and sees its state."""
    return {"mode": EXPERT, "checkpoint": "scripted expert", "device": "simulator", "dtype": "float64", "chunk": chunk}


def make_engine(parts: PolicyParts, choice: ModeChoice, config: EvalConfig) -> RSDInferenceEngine:
    """The engine of one mode."""
    return RSDInferenceEngine(
        parts.main,
        parts.draft,
        parts.codec,
        mode=choice.mode,  # type: ignore[arg-type]  # parse_mode has checked it
        device=config.device,
        seed=config.seed,
        batch_sizes=[*(1 << power for power in range(config.batch.bit_length())), config.batch],  # any number is a few
        **parts.acceptance | choice.settings.engine_settings(),
    )


def _timed(policy: Policy, observations: Sequence[Observation], instructions: Sequence[str]) -> Decoded:
    start = time.perf_counter()
    actions, infos = policy.generate_actions(observations, instructions)
    total = 1e3 * (time.perf_counter() - start)
    for info in infos:
        stages = {name: ms for name, ms in info["ms"].items() if name != "total"}
        info["ms"] = {"inputs": max(0.0, total - sum(stages.values())), **stages, "total": total}
    return actions, infos


def fingerprint(folder: Path, parts: Sequence[str]) -> str:
    """Tells weights of a policy's parts from others, without reading gigabytes: sizes, and the ends of every file."""
    digest = hashlib.sha256()
    for file in sorted(file for part in parts for file in folder.glob(f"{part}/*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            ends = [stream.read(1 << 20)]
            stream.seek(max(0, size - (1 << 20)))
            ends.append(stream.read())
        digest.update(f"{file.relative_to(folder)} {size} ".encode() + b"".join(ends))
    return digest.hexdigest()[:12]


def set_threads(config: EvalConfig) -> int:
    """Sets torch's threads; see `EvalConfig.threads`. Returns them."""
    on_cpu = choose_device(config.device).type == "cpu"
    threads = config.threads or (max(1, usable_cores() - config.simulators) if on_cpu else 1)
    torch.set_num_threads(threads)
    return threads


def _with_draft(parts: PolicyParts, folder: Path, kind: str) -> PolicyParts:
    part = folder / f"draft-{kind}"
    if not part.is_dir():
        found = sorted(path.name.removeprefix("draft-") for path in folder.glob("draft-*"))
        raise ValueError(f"got draft {kind!r}, expected one of {found} ({folder} has no {part.name})")
    return replace(parts, draft=load_draft(str(part), kind).eval())
