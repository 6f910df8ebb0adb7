"""The settings of `rsd-fast demos` and `rsd-fast train ...`: plain dataclasses whose documentation is the `--help`.

A policy folder grows part by part: `train codec` writes `<out>/codec`, `train main` reads it and writes `<out>/main`,
`train draft` reads both and writes `<out>/draft-<kind>`. Everything that is not part of the policy (training state,
metrics, curves) goes to `<out>-training/`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from tyro.conf import Positional

Head = Literal["hierarchical", "parallel", "regression", "conditioned_queries"]  # those that train together

# What may change when a run is taken up again.
FREE = frozenset(
    {
        *("demos", "out", "device", "workers", "steps", "minutes", "eval_every", "eval_samples"),
        *("patience", "resume", "compile", "cuda_graph"),
    }
)


@dataclass(kw_only=True)
class DemosConfig:
    """Demonstrations of the scripted experts, in LIBERO's file layout, one HDF5 file a task."""

    out: Path = Path("demos")
    """Folder for the files; a run that was stopped goes on where it was."""
    suite: str = "robosuite"
    """Simulation suite."""
    tasks: tuple[str, ...] = ()
    """Tasks of the suite; none means all."""
    episodes: int = 100
    """Successful episodes a task."""
    workers: int = 2
    """Simulations at a time. The files do not depend on it."""
    image_size: int = 128
    """Pixels a side of both cameras; what the main model is trained at."""
    render: bool = True
    """Draw the pictures. Without, they can be drawn later by `rsd-fast render`, also on another machine: recording then
    needs no GL library and takes a fraction of the time and the space."""
    push: float = 0.6
    """Largest push that the expert has to recover from, as a share of the largest command; 0 for none."""
    slips: float = 0.35
    """Share of pushes that are slips instead: the fingers open, then shut on nothing."""
    policy: str | None = None
    """A policy that acts for stretches of every episode, so that the expert shows the way back from its mistakes: a
    folder, the name of a shipped checkpoint, or a hub id. It looks, so a GL library is needed, without --render too."""
    device: str = "auto"
    """Of that policy: auto, cpu, cuda, ..."""
    seed: int = 0
    """First seed. Evaluation starts from other ones."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that make no demonstrations."""
        _at_least(self, episodes=1, workers=1, image_size=16, push=0, slips=0, seed=0)
        if self.slips > 1:
            raise ValueError(f"got slips {self.slips}, expected a share of at most 1")


@dataclass(kw_only=True)
class RenderConfig:
    """Draws the pictures of demonstrations that were recorded without them, or anew at another size.

    The result is what `rsd-fast demos` writes with pictures, stored plainly, which is what `rsd-fast train` reads
    fastest: 98 KB a step at 128 pixels.
    """

    demos: Positional[Path]
    """Folder of demonstration files (searched for *.hdf5), or one such file."""
    out: Path = Path("demos")
    """Folder for the files; a run that was stopped goes on where it was."""
    workers: int = 2
    """Simulators that draw at a time. The files do not depend on it."""
    image_size: int = 128
    """Pixels a side of both cameras; what the main model is trained at."""
    every: int = 1
    """Draw the first of so many steps only. Neighbouring pictures are nearly the same, so time and space are better
    spent on more demonstrations; training starts its chunks at steps that have pictures."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that draw nothing."""
        _at_least(self, workers=1, image_size=16, every=1)


@dataclass(kw_only=True)
class DataOptions:
    """Which demonstrations, and how they are split."""

    demos: Path = Path("demos")
    """Folder of demonstration files (searched for *.hdf5), or one such file."""
    out: Path = Path("checkpoints/policy")
    """The policy folder."""
    held_out: float = 0.05
    """Share of each task's demonstrations that is never trained on."""
    seed: int = 0
    """Of the split, the initial weights and all draws."""
    device: str = "auto"
    """`auto`, `cuda`, `cpu`: the whole data set is kept there."""
    workers: int = 4
    """Processes that read and decompress the files."""

    def __post_init__(self) -> None:
        """Raises ValueError on a share that leaves nothing."""
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"got held_out {self.held_out}, expected a share between 0 and 1")
        _at_least(self, seed=0, workers=1)

    @property
    def work(self) -> Path:
        """Where training state, metrics and curves go."""
        return self.out.with_name(f"{self.out.name}-training")


@dataclass(kw_only=True)
class OptimizerOptions(DataOptions):
    """How long and how fast."""

    steps: int = 20000
    """Optimiser steps at most."""
    minutes: float | None = None
    """Minutes at most, with evaluation and compilation; the learning rate comes down in time for whichever ends first,
    steps or minutes."""
    batch: int = 256
    """Samples a step."""
    learning_rate: float = 6e-4
    """Peak of a linear warm-up and a cosine."""
    warmup: int = 300
    """Steps of the warm-up."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones evaluated and exported."""
    eval_every: int = 500
    """Steps between evaluations on held-out data; the state is saved after the first one, then once a minute."""
    eval_samples: int = 2048
    """Held-out chunks an evaluation looks at."""
    patience: int = 10
    """Evaluations without progress before training stops early."""
    resume: bool = True
    """Go on from the last saved state, if there is one."""
    compile: bool = False
    """Compile the models' blocks with torch.compile: half a minute of waiting, then faster steps on a GPU."""
    cuda_graph: bool = False
    """Capture the whole step as one CUDA graph, so that a GPU does not wait for Python; needs a GPU."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that train nothing."""
        super().__post_init__()
        _at_least(self, steps=1, batch=1, warmup=0, weight_decay=0, eval_every=1, eval_samples=1, patience=1)
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(f"got learning_rate {self.learning_rate} and clip {self.clip}, expected both above 0")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"got ema {self.ema}, expected a decay in [0, 1)")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"got minutes {self.minutes}, expected more than 0, or none for no limit")

    def settings(self, **more: Any) -> dict[str, Any]:
        """What must be the same for a saved state to be taken up: all fields but those of `FREE`, and `more`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in FREE} | more


@dataclass(kw_only=True)
class AugmentOptions:
    """How training observations differ from recorded ones."""

    shift: int = 4
    """Pixels by which an image is moved at most, drawn per sample and camera."""
    jitter: float = 0.2
    """Strength of random brightness, contrast and colour, per sample and camera; 0 for none."""
    proprio_noise: float = 0.02
    """Standard deviation of noise on the normalised proprioception."""
    proprio_dropout: float = 0.1
    """Share of samples that see no proprioception (its centre instead), so that the policy must look."""

    def check(self) -> None:
        """Raises ValueError on an impossible augmentation."""
        _at_least(self, shift=0, jitter=0, proprio_noise=0, proprio_dropout=0)
        if self.jitter >= 1 or self.proprio_dropout > 1:
            raise ValueError(
                f"got jitter {self.jitter} and proprio_dropout {self.proprio_dropout}, expected below 1 and at most 1"
            )


@dataclass(kw_only=True)
class CodecTraining(OptimizerOptions):
    """Fits the codec: normalisation, scales, and where the preset has one, the action autoencoder."""

    steps: int = 3000
    """Optimiser steps at most; only an autoencoder needs any."""
    batch: int = 1024
    """Action steps an optimiser step."""
    learning_rate: float = 2e-3
    """Peak of a linear warm-up and a cosine."""
    weight_decay: float = 0.0
    """AdamW's, on matrices only."""
    codec: str = "redundant"
    """`redundant`: 3 layers of 5 overlapping levels on the actions; `original`: 8 of 7 behind an autoencoder. Changes
    follow a colon: "redundant:layers=4,levels=7,redundancy=1.6,normalization=none", "original:autoencoder=off"."""
    quantile: float = 0.01
    """Share of the commands, at either end of each dimension, that the codec clips. The customary 1 % is too much where
    a few tasks of many need a motion, such as a turn of the hand: their commands are the rare ones."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that train nothing."""
        super().__post_init__()
        _check_quantile(self.quantile)


@dataclass(kw_only=True)
class CodecSweep:
    """What codecs of other layers, levels and redundancies lose on the demonstrations' actions; trains nothing."""

    demos: Path = Path("demos")
    """Folder of demonstration files (searched for *.hdf5), or one such file; pictures are not needed."""
    out: Path = Path("results/codecs")
    """Folder for sweep.json."""
    layers: int = 8
    """Layers L at most: a codec of fewer is the same with its first ones kept, and so has a column here."""
    levels: tuple[int, ...] = (5, 7, 9, 15)
    """Numbers of levels V."""
    redundancy: tuple[float, ...] = (1.0, 1.6, 2.0, 3.0)
    """Redundancies rho; those that are impossible with a number of levels are left out."""
    normalization: tuple[Literal["scale", "none"], ...] = ("scale",)
    """`scale`: the first layer's range is fitted a dimension; `none`: it is [-1, 1]."""


@dataclass(kw_only=True)
class CodecComparison:
    """Trains a small policy a codec, all on the same demonstrations, and writes one table of their errors."""

    variants: tuple[str, ...] = ("redundant", "original")
    """Codecs as in `train codec --codec`, also with `perturb` of main's training: "redundant:layers=4,perturb=0"."""
    demos: Path = Path("demos")
    """Folder of demonstration files (searched for *.hdf5), or one such file."""
    out: Path = Path("results/compare")
    """Folder for compare.json, compare.md, and a policy folder a variant."""
    config: str | None = None
    """All other settings: those of a shipped model (libero-nano, libero-small, robosuite-nano) or of a TOML file."""
    minutes: float = 1.0
    """Minutes of main and draft together, a variant; an autoencoder's training comes on top."""
    draft: Literal["regression", "coarse"] = "regression"
    """The draft model of every variant."""
    device: str = "auto"
    """`auto`, `cuda`, `cpu`: the whole data set is kept there."""
    compile: bool = False
    """Compile the models' blocks with torch.compile, anew for every variant."""
    cuda_graph: bool | None = None
    """Capture the whole step as one CUDA graph; none: as the settings say."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that compare nothing."""
        if not self.variants or self.minutes <= 0:
            raise ValueError(
                f"got variants {list(self.variants)} and minutes {self.minutes}, expected at least one and more than 0"
            )


@dataclass(kw_only=True)
class MainTraining(OptimizerOptions, AugmentOptions):
    """Trains the main model on perturbed prefixes; needs the codec."""

    preset: str = "nano"
    """Size of the main model: `nano`, `small`, or `tiny` for tests."""
    chunk: int = 8
    """Steps of a chunk."""
    perturb: float = 0.3
    """Probability that a prefix code is a valid neighbour of the nearest one."""
    heads: tuple[Head, ...] = ("hierarchical", "parallel")
    """The heads of the main model, trained together on one backbone. `hierarchical` is the one that decodes and has to
    be there; the others are baselines of one pass: `parallel` (all layers at once), `regression` (L1, no codes),
    `conditioned_queries` (the last layer, given a draft's codes of the others)."""
    parallel_weight: float = 0.5
    """Weight of the parallel head's loss."""
    baseline_weight: float = 0.5
    """Weight of the loss of each further baseline."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all levels."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that train nothing."""
        super().__post_init__()
        self.check()
        _at_least(self, chunk=1, perturb=0, parallel_weight=0, baseline_weight=0, label_smoothing=0)
        _check_heads(self.heads)
        if self.perturb > 1 or self.label_smoothing >= 1:
            raise ValueError(
                f"got perturb {self.perturb} and label_smoothing {self.label_smoothing}, expected at most 1 and below 1"
            )


@dataclass(kw_only=True)
class DraftTraining(OptimizerOptions, AugmentOptions):
    """Trains a draft model on the data and on main's own predictions; needs the codec and the main model."""

    steps: int = 8000
    """Optimiser steps at most."""
    kind: Literal["regression", "coarse"] = "regression"
    """`regression`: a continuous chunk, quantised by the codec; `coarse`: logits of the first layers."""
    main_weight: float = 0.5
    """Weight of main's own predictions as targets; the data has the rest."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that train nothing."""
        super().__post_init__()
        self.check()
        if not 0.0 <= self.main_weight <= 1.0:
            raise ValueError(f"got main_weight {self.main_weight}, expected a share in [0, 1]")


@dataclass(kw_only=True)
class AllTraining(OptimizerOptions, AugmentOptions):
    """Codec, main model, both drafts and the model card, from one folder of demonstrations."""

    config: str | None = None
    """Settings of a shipped model (libero-nano, libero-small, robosuite-nano) or of a TOML file; other flags come on
    top."""
    draft_steps: int = 8000
    """Optimiser steps of each draft at most (`steps` are main's)."""
    draft_share: float = 0.15
    """Share of `minutes` that each draft gets."""
    codec: str = "redundant"
    """See `train codec --help`."""
    quantile: float = 0.01
    """See `train codec --help`."""
    preset: str = "nano"
    """Size of the main model: `nano`, `small`, or `tiny` for tests."""
    chunk: int = 8
    """Steps of a chunk."""
    perturb: float = 0.3
    """Probability that a prefix code is a valid neighbour of the nearest one."""
    heads: tuple[Head, ...] = ("hierarchical", "parallel")
    """The heads of the main model; see `train main --help`."""
    parallel_weight: float = 0.5
    """Weight of the parallel head's loss."""
    baseline_weight: float = 0.5
    """Weight of the loss of each further baseline."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all levels."""
    main_weight: float = 0.5
    """Weight of main's own predictions in the drafts' targets."""
    final_samples: int = 4096
    """Held-out chunks that the model card's table of errors is measured on."""
    success: Path | None = None
    """summary.json of an `rsd-fast eval`, for the success table of the model card."""

    def __post_init__(self) -> None:
        """Raises ValueError on settings that train nothing."""
        super().__post_init__()
        self.check()
        _at_least(self, draft_steps=1, final_samples=1)
        _check_quantile(self.quantile)
        _check_heads(self.heads)
        if not 0.0 < self.draft_share < 0.5:
            raise ValueError(f"got draft_share {self.draft_share}, expected between 0 and 0.5: there are two drafts")


def _check_quantile(quantile: float) -> None:
    if not 0.0 <= quantile < 0.5:
        raise ValueError(f"got quantile {quantile}, expected from 0 (nothing is clipped) to below 0.5")


def _check_heads(heads: tuple[str, ...]) -> None:
    known = get_args(Head)
    if "hierarchical" not in heads or set(heads) - set(known) or len(set(heads)) < len(heads):
        raise ValueError(f"got heads {list(heads)}, expected 'hierarchical' and others of {list(known)}, none twice")


def _at_least(config: object, **least: float) -> None:
    for name, bound in least.items():
        if (value := getattr(config, name)) < bound:
            raise ValueError(f"got {name} {value}, expected at least {bound}")
