"""What `rsd-fast sweep` can be told, and the evaluations it becomes. Imports nothing heavy: `--help` reads this."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Literal

from .config import EvalConfig, ModeChoice, parse_mode, split_modes


@dataclass(frozen=True)
class SweepConfig(EvalConfig):
    """Evaluate RSD over a grid of settings, all on the same episodes, and draw success against latency.

    The grid is every combination of --drafts, --granularities, --rules, --thetas and --tolerances; what is not in it
    (--keep, --temperature, --stop) is set as in `rsd-fast eval`. Beside the grid run the --modes, of which the first is
    the baseline. One evaluation runs it all: simulators, policy and states are shared, comparisons are paired, and
    the same command goes on after it was stopped, or after its lists have grown. Several --replans are an evaluation
    each, in OUT/replan_N, and one report in OUT; latencies are then compared by action.

    It ends with the report: plots/pareto_latency and pareto_passes, and the settings that no other beats.

    Examples:
      rsd-fast sweep --dry-run
      rsd-fast sweep --suite libero_spatial --checkpoint FOLDER --trials 10 --workers 16
      rsd-fast sweep --rules "typical(0.05)" "typical(0.2)" "typical(0.5)" --granularities element --thetas 0.9 1
      rsd-fast sweep --modes sequential parallel --drafts coarse regression --replans 8 4 --out results/replan
    """

    trials: int = 10
    """Episodes a task and mode, at the suite's evaluation states 0, 1, 2, ..."""
    modes: tuple[str, ...] = ("sequential",)
    """What runs beside the grid, as in `rsd-fast eval`. The first is the baseline of every ratio."""
    out: Path = Path("results/sweep")
    """Folder for everything that this command writes."""
    thetas: tuple[float, ...] = (0.5, 0.7, 0.9, 1.0)
    """Shares of elements that must be final (granularity element) or must agree (layer)."""
    rules: tuple[str, ...] = ("exact", "typical(0.1)", "distance(1)")
    """When a drafted code may stand: exact, distance(LEVELS), typical(TAU)."""
    granularities: tuple[Literal["element", "layer"], ...] = ("element", "layer")
    """Accept element by element, or whole layers."""
    drafts: tuple[Literal["regression", "coarse", "original"], ...] = ("coarse",)
    """Draft models of the checkpoint."""
    tolerances: tuple[float, ...] = ()
    """Adaptive depths: as few layers as stay within so much of the full code, in action units. Each also for the
    --modes beside the grid. Default: the full code, or what --stop or --tolerance say."""
    replans: tuple[int, ...] = ()
    """Actions of a chunk that are executed before looking again; default what --replan says."""
    dry_run: bool = False
    """List the grid and how many episodes it is, and run nothing."""

    def __post_init__(self) -> None:
        """Raises ValueError on an empty or repeating list, and as `EvalConfig` does."""
        for name in ("thetas", "rules", "granularities", "drafts", "tolerances", "replans"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (not values and name not in ("tolerances", "replans")):
                raise ValueError(f"got --{name} {list(values)}, expected at least one, and none twice")
        if any(replan < 1 for replan in self.replans):
            raise ValueError(f"got --replans {list(self.replans)}, expected at least 1")
        super().__post_init__()

    @property
    def choices(self) -> tuple[ModeChoice, ...]:
        """The modes beside the grid, then the grid, with their settings."""
        return tuple(parse_mode(text, self.decode) for text in self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """All modes. Those of the grid say all that it can vary, so that a folder takes a wider grid later."""
        depths = [f"tolerance={value:g}" for value in self.tolerances]
        beside = [_with(mode, depth) for mode in split_modes(self.modes) for depth in depths or [""]]
        grid = product(self.drafts, self.granularities, self.rules, self.thetas, depths or [""])
        return (
            *beside,
            *(
                _with(f"rsd:draft={draft},granularity={granularity},rule={rule},theta={theta:g}", depth)
                for draft, granularity, rule, theta, depth in grid
            ),
        )

    def evaluations(self) -> list[EvalConfig]:
        """One for each replan interval."""
        own = {f.name: getattr(self, f.name) for f in fields(EvalConfig)} | {"modes": self.labels}
        if len(self.replans) < 2:
            return [EvalConfig(**own | {"replan": self.replans[0] if self.replans else self.replan})]
        parts = [{"replan": replan, "out": self.out / f"replan_{replan}"} for replan in self.replans]
        return [EvalConfig(**own | part) for part in parts]


def _with(mode: str, setting: str) -> str:
    if not setting:
        return mode
    return f"{mode},{setting}" if ":" in mode else f"{mode}:{setting}"
