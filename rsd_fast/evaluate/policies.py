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
from rsd_fast.observation import Observation

from .config import EvalConfig, ModeChoice, usable_cores


class Policy(Protocol):
    """What the runner asks of an engine."""

    def generate_actions(
        self, observations: Sequence[Observation], instructions: Sequence[str]
    ) -> tuple[Float[np.ndarray, "B T 7"], list[dict[str, Any]]]:
        """See `RSDInferenceEngine.generate_actions`."""
        ...

    def describe(self) -> dict[str, Any]:
        """See `RSDInferenceEngine.describe`."""
        ...

    def reseed(self, seed: int) -> None:
        """See `RSDInferenceEngine.reseed`."""
        ...


@dataclass
class Policies:
    """Policies by label of their mode.

    Attributes:
        by_mode: see above.
        origin: what they were made of, for the records.
    """

    by_mode: dict[str, Policy]
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def chunk(self) -> int:
        """Actions of a chunk."""
        chunk: int = next(iter(self.by_mode.values())).describe()["chunk"]
        return chunk

    def settings(self, mode: str) -> dict[str, Any]:
        """What makes episodes of a mode comparable."""
        described = {name: value for name, value in self.by_mode[mode].describe().items() if name != "versions"}
        return {**self.origin, **described}


def load_policies(config: EvalConfig) -> Policies:
    """Loads the checkpoint once; the engines of all modes share its weights.

    Raises:
        FileNotFoundError: no such checkpoint, or a part of it is missing.
        ValueError: settings that do not fit the checkpoint, or each other.
        RuntimeError: a GPU that is not there.
    """
    folder = resolve_checkpoint(config.checkpoint)
    parts = load_policy(folder, draft=None, device=config.device)
    drafts: dict[str, PolicyParts] = {}
    engines: dict[str, Policy] = {}
    for choice in config.choices:
        if choice.draft and choice.draft not in drafts:
            drafts[choice.draft] = _with_draft(parts, folder, choice.draft)
        own = drafts[choice.draft] if choice.draft else parts
        engines[choice.label] = make_engine(own, choice, config)
    return Policies(engines, {"checkpoint": config.checkpoint, "weights": fingerprint(folder)})


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
        **choice.settings.engine_settings(),
    )


def decode(
    policy: Policy, observations: Sequence[Observation], instructions: Sequence[str], seeds: Sequence[int]
) -> tuple[Float[np.ndarray, "B T 7"], list[dict[str, Any]]]:
    """One call, timed.

    Args:
        policy: decides.
        observations, instructions: of the chunks.
        seeds: of their draws. A policy that samples decodes chunk by chunk, so that the draws of one depend on nothing
            but its seed.

    Returns:
        as `generate_actions`; `info["ms"]` has the stage `inputs` too, so that stages sum to `total`, the whole call.
    """
    if policy.describe()["temperature"] == 0 or len(seeds) == 1:
        policy.reseed(seeds[0])
        return _timed(policy, observations, instructions)
    single = [decode(policy, [o], [i], [s]) for o, i, s in zip(observations, instructions, seeds, strict=True)]
    return np.concatenate([actions for actions, _ in single]), [info for _, infos in single for info in infos]


def _timed(
    policy: Policy, observations: Sequence[Observation], instructions: Sequence[str]
) -> tuple[Float[np.ndarray, "B T 7"], list[dict[str, Any]]]:
    start = time.perf_counter()
    actions, infos = policy.generate_actions(observations, instructions)
    total = 1e3 * (time.perf_counter() - start)
    for info in infos:
        stages = {name: ms for name, ms in info["ms"].items() if name != "total"}
        info["ms"] = {"inputs": max(0.0, total - sum(stages.values())), **stages, "total": total}
    return actions, infos


def warm_up(policies: Policies, observation: Observation, instruction: str) -> None:
    """One chunk of each mode, so that no episode pays for first-time work."""
    for policy in policies.by_mode.values():
        policy.generate_actions([observation], [instruction])


def fingerprint(folder: Path) -> str:
    """Tells a policy's weights from others, without reading gigabytes: sizes, and the ends of every file."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*/*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            ends = [stream.read(1 << 20)]
            stream.seek(max(0, size - (1 << 20)))
            ends.append(stream.read())
        digest.update(f"{file.relative_to(folder)} {size} ".encode() + b"".join(ends))
    return digest.hexdigest()[:12]


def set_threads(config: EvalConfig) -> int:
    """Sets torch's threads; see `EvalConfig.threads`. Returns them."""
    threads = config.threads or max(1, usable_cores() - config.simulators)
    torch.set_num_threads(threads)
    return threads


def _with_draft(parts: PolicyParts, folder: Path, kind: str) -> PolicyParts:
    part = folder / f"draft-{kind}"
    if not part.is_dir():
        found = sorted(path.name.removeprefix("draft-") for path in folder.glob("draft-*"))
        raise ValueError(f"got draft {kind!r}, expected one of {found} ({folder} has no {part.name})")
    return replace(parts, draft=load_draft(str(part), kind).eval())
