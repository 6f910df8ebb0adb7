"""What `rsd-fast eval`, `report` and `info` can be told. Imports nothing heavy: `--help` reads this file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

# The engine's modes, and those that need a draft model; named here because importing it loads torch.
MODES = ("sequential", "rsd", "jacobi", "parallel", "conditioned", "regression", "draft")
DRAFTED = ("rsd", "conditioned", "draft")
# Shipped policies by the suites they know; of any other suite the default of the engine.
SHIPPED = dict.fromkeys(("libero_spatial", "libero_object", "libero_goal", "libero_10"), "libero-nano")
EXPERT = "expert"  # no mode of the engine: the suite's scripted expert acts, inside the simulator


@dataclass(frozen=True)
class DecodeSettings:
    """How the modes decode. A mode string can set any of these for itself: "rsd:theta=1,rule=exact"."""

    draft: Literal["regression", "coarse", "original"] = "coarse"
    """Which draft model of the checkpoint proposes (modes rsd, conditioned and draft)."""
    rule: str | None = None
    """When a drafted code may stand: exact, distance(LEVELS) or typical(TAU). Default of this and the next three: what
    the checkpoint recommends (acceptance.json), otherwise exact, layer, 0.75, main."""
    granularity: Literal["element", "layer"] | None = None
    """Accept element by element (partial acceptance), or whole layers."""
    theta: float | None = None
    """Share of elements that must be final (element) or must agree (layer)."""
    keep: Literal["main", "draft"] | None = None
    """What disagreeing elements of an accepted layer take (granularity layer)."""
    temperature: float = 0.0
    """0 decodes greedily; above 0 samples, which needs granularity layer, rule exact and theta 1."""
    stop: int | None = None
    """Layers to decode; default all."""
    tolerance: float | None = None
    """Adaptive depth instead of --stop: as few layers as stay within so much of the full code, in action units."""
    expected_last: bool | None = None
    """Read the last layer as a mean over its levels, not as the likeliest one; default yes, unless it samples. In a
    mode string on or off."""

    def engine_settings(self) -> dict[str, Any]:
        """Keyword arguments of the engine, those that are set; without the draft, which is a model to load."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "draft"}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class ModeChoice:
    """One of the modes that are compared: `label` is how the user wrote it."""

    label: str
    mode: str
    settings: DecodeSettings

    @property
    def draft(self) -> str | None:
        """The draft model it needs."""
        return self.settings.draft if self.mode in DRAFTED else None

    @property
    def is_expert(self) -> bool:
        """Whether no policy acts, but the suite's scripted expert."""
        return self.mode == EXPERT


def split_modes(words: Sequence[str]) -> tuple[str, ...]:
    """Modes from words that hold one or several each: `"sequential,rsd:theta=1,rule=exact"` are two.

    A comma between settings of a mode and one between modes look the same; a mode has no `=` in its name.

    Raises:
        ValueError: a setting without a mode before it.
    """
    modes: list[str] = []
    for word in words:
        for position, piece in enumerate(filter(None, word.split(","))):
            is_setting = "=" in piece.partition(":")[0]
            if not is_setting:
                modes.append(piece)
            elif position and ":" in modes[-1]:
                modes[-1] += f",{piece}"
            else:
                raise ValueError(f"got setting {piece!r} without a mode in {word!r}, expected MODE:{piece}")
    return tuple(modes)


def parse_mode(text: str, defaults: DecodeSettings) -> ModeChoice:
    """`"rsd"` or `"rsd:theta=1,rule=exact"`: a mode of the engine, and what differs from `defaults`.

    Raises:
        ValueError: a mode or a setting that does not exist, or a value that is not what its setting takes.
    """
    mode, _, overrides = text.partition(":")
    if mode not in (*MODES, EXPERT):
        raise ValueError(f"got mode {mode!r}, expected one of {[*MODES, EXPERT]}")
    if mode == EXPERT and overrides:
        raise ValueError(f"got {text!r}, expected {EXPERT!r}: it decodes nothing, so it has no settings")
    changes: dict[str, Any] = {}
    for item in filter(None, overrides.split(",")):
        name, _, value = item.partition("=")
        if name not in _CONVERT or not value:
            raise ValueError(f"got {item!r} in mode {text!r}, expected NAME=VALUE with one of {sorted(_CONVERT)}")
        try:
            changes[name] = _CONVERT[name](value)
        except ValueError as error:
            expected = "on or off" if _CONVERT[name] is _switch else "a number"
            raise ValueError(f"got {value!r} for {name} in mode {text!r}, expected {expected}") from error
    return ModeChoice(text, mode, replace(defaults, **changes))


def _switch(text: str) -> bool:
    return bool(("off", "on").index(text))


_CONVERT: dict[str, Callable[[str], Any]] = {
    "draft": str,
    "rule": str,
    "granularity": str,
    "theta": float,
    "keep": str,
    "temperature": float,
    "stop": int,
    "tolerance": float,
    "expected_last": _switch,
}


def usable_cores() -> int:
    """Cores this process may run on; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class EvalConfig:
    """Run closed-loop episodes in a simulator and compare decoding modes.

    Every mode runs the same episodes (same task, same initial state), so the comparison is paired. One row an episode
    goes to OUT/episodes.jsonl as soon as it ends; at the end come a table, report.md, summary.json, report.png and
    report.svg, and videos with the modes side by side. Stop it at any time, even with kill -9: the same command goes
    on where it was, and tries again what ended in an error. An episode ends in success, failure or error; an error is
    never counted as a failure.

    Examples:
      rsd-fast eval --suite robosuite --trials 20 --modes sequential,rsd --video 1
      rsd-fast eval --tasks Lift --trials 5 --modes sequential rsd "rsd:rule=exact,theta=1" --out results/lift
    """

    suite: str = "robosuite"
    """Family of tasks."""
    tasks: tuple[str, ...] = ()
    """Names of tasks; default all of the suite."""
    trials: int = 20
    """Episodes a task and mode, at the suite's evaluation states 0, 1, 2, ..."""
    modes: tuple[str, ...] = ("sequential", "rsd")
    """sequential, rsd, jacobi, draft (the draft model's chunk as it is), parallel, conditioned or regression, each with
    settings of its own if wanted (see above); the last three need a head of their own in the checkpoint. expert is the
    suite's scripted expert, which sees the simulator's state. The first is the baseline of every ratio."""
    checkpoint: str | None = None
    """Policy: a folder, the name of a shipped checkpoint, or a hub id; default the shipped one that knows the suite
    (libero-nano, robosuite-nano)."""
    out: Path = Path("results/eval")
    """Folder for everything that this command writes."""
    workers: int | None = None
    """Simulators at once, each in a process of its own; default one a core, at most 8."""
    ray: str | None = None
    """Run on a Ray cluster: local starts one on this machine, auto finds one that runs here, HOST:PORT joins one.
    --workers is then how many simulators there are on all nodes, by default one a core."""
    device: str = "auto"
    """Of the policy: auto, cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads of the policy; default the cores that the simulators leave, at least 1; 1 where the policy is on a
    GPU, since idle threads would only be in the simulators' way."""
    batch: int = 1
    """Chunks that the policy decodes in one call at most. Only at 1 is the latency that of one robot."""
    replan: int | None = None
    """Execute only so many actions of a chunk before looking again; default all of them."""
    image_size: int | None = None
    """Pixels a side that the cameras render; default 256 for OpenVLA's policies, else what the suite says. The policy
    resizes to its own."""
    gripper: Literal["auto", "simulator", "openvla"] = "auto"
    """What the policy's last number says: the simulator's command (-1 opens, 1 closes), or OpenVLA's (0 closes, 1
    opens). auto: openvla for a checkpoint that was converted from OpenVLA, simulator for others."""
    assets: Path | None = None
    """LIBERO's meshes and textures, as RSD_FAST_LIBERO_ASSETS; only for LIBERO's suites."""
    video: int = 0
    """Episodes a task to film. Rendering every step makes them slower."""
    retries: int = 1
    """How often an episode that ended in an error is tried again in this run."""
    step_timeout: float = 300.0
    """Seconds that a simulator may take for a chunk, or to build a task, before it counts as hung."""
    seed: int = 0
    """Of the draws, when temperature is above 0."""
    resume: bool = True
    """Go on in a folder that has results already; --no-resume refuses such a folder."""
    decode: OmitArgPrefixes[DecodeSettings] = field(default_factory=DecodeSettings)

    def __post_init__(self) -> None:
        """Raises ValueError on numbers and modes that make no sense."""
        for name in ("trials", "batch", "image_size", "workers", "threads", "replan"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"got --{name.replace('_', '-')} {value}, expected at least 1")
        for name in ("video", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"got --{name} {getattr(self, name)}, expected 0 or more")
        if self.assets is not None and not self.suite.startswith("libero"):
            raise ValueError(f"got --assets with suite {self.suite!r}, expected one of LIBERO's: no other reads them")
        if self.step_timeout <= 0:
            raise ValueError(f"got --step-timeout {self.step_timeout}, expected more than 0 seconds")
        labels = [choice.label for choice in self.choices]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"got modes {labels}, expected at least one, and none twice")

    @property
    def policy(self) -> str:
        """The checkpoint, or the shipped one that knows the suite."""
        return self.checkpoint or SHIPPED.get(self.suite, "robosuite-nano")

    @property
    def choices(self) -> tuple[ModeChoice, ...]:
        """The modes with their settings."""
        return tuple(parse_mode(text, self.decode) for text in split_modes(self.modes))

    @property
    def simulators(self) -> int:
        """How many simulators run at once."""
        return self.workers or min(usable_cores(), 8)


@dataclass(frozen=True)
class ReportConfig:
    """Build the report of evaluations anew: table, report.md, summary.json, figures, tables for a paper, videos.

    Several folders become one report: shards of one evaluation, suites (which get a row each, and one for all), or
    replan intervals (which every mode's name then tells). docs/reports.md says what is in it.
    """

    folders: Positional[tuple[Path, ...]]
    """What was given to `rsd-fast eval` as --out."""
    baseline: str | None = None
    """The mode that ratios and tests compare with; default the first one of the evaluation."""
    out: Path | None = None
    """Where to write; default the first folder."""


@dataclass(frozen=True)
class StudyConfig:
    """Say from records where RSD pays: one page over settings, suites and policies, all paired.

    Episodes of one policy (equal weights: suites, sweeps, shards, replan intervals, devices) become one section, with
    success and interval, paired difference, passes, kept layers by layer and by phase, and latency of every setting.
    With --stages the recorded passes are replayed at another model's speed, and the verdicts are about that. The page
    states their thresholds.

    Example: rsd-fast study results/spatial results/goal --stages results/stages.json --out docs/study.md
    """

    folders: Positional[tuple[Path, ...]]
    """What was given to `rsd-fast eval` as --out; of a sweep over replan intervals, its folders replan_N."""
    stages: Path | None = None
    """JSON with vision_ms, prefill_ms, draft_ms, pass_ms and tail_ms, as `python -m bench.gpu_openvla` writes."""
    baseline: str | None = None
    """The mode that everything is compared with; default sequential, else the first of each policy's first folder."""
    setting: str | None = None
    """The setting of RSD that is held against the target and all other modes; default what the numbers recommend."""
    codecs: Path | None = None
    """Codecs that were trained and compared offline: a table in Markdown, or JSON with a flat object a codec."""
    out: Path = Path("docs/study.md")
    """The page; its figures go to a folder `images` beside it."""


@dataclass(frozen=True)
class InfoConfig:
    """Show versions, kernel backends and why they were picked, GPU, GL libraries, suites and checkpoints.

    This is what to send along with a bug report.
    """

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class ProfileConfig:
    """Run rounds of a policy for a profiler.

    Under Nsight Systems or Nsight Compute the rounds are a cudaProfilerApi range with NVTX marks; alone, a trace of
    torch's profiler is written, and the Nsight command lines are printed. docs/profiling.md shows how to read one.

    Example: rsd-fast profile --mode rsd --runtime graph --rounds 20
    """

    checkpoint: str = "robosuite-nano"
    """Policy: a folder, the name of a shipped checkpoint, or a hub id."""
    mode: Literal["sequential", "rsd", "jacobi", "parallel", "conditioned", "regression", "draft"] = "rsd"
    """How to decode."""
    draft: Literal["regression", "coarse"] = "coarse"
    """Which draft model proposes (modes rsd, conditioned and draft)."""
    runtime: Literal["auto", "eager", "graph", "device-loop"] = "auto"
    """How rounds are driven. With device-loop the host marks one range a round; graph marks every stage."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    rounds: int = 20
    """Rounds inside the profiled range."""
    warmup: int = 5
    """Rounds before it."""
    batch: int = 1
    """Chunks a round."""
    instruction: str = "lift the red cube"
    """What the policy is told; the pictures are noise."""
    out: Path = Path("results/profile/trace.json")
    """Trace of torch's profiler, where no Nsight is watching."""

    def __post_init__(self) -> None:
        """Raises ValueError on numbers that make no sense."""
        for name, least in (("rounds", 1), ("warmup", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"got --{name} {getattr(self, name)}, expected at least {least}")
