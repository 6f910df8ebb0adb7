"""Recorded passes at another model's speed: what the same episodes would have taken there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .config import DRAFTED
from .records import EpisodeRow

STAGES = ("vision", "prefill", "draft", "pass", "tail")

Milliseconds = dict[str, float]  # by name in STAGES: once a chunk; pass and tail once a pass


def read_geometry(path: Path, layers: int | None = None) -> Milliseconds:
    """Measured times of the stages, as `python -m bench.gpu_openvla` writes them to stages.json.

    Args:
        path: JSON with `vision_ms`, `prefill_ms`, `draft_ms`, `pass_ms` and `tail_ms`, of one chunk and one pass; and
            `parallel_ms`, if known, of a whole chunk of mode parallel or regression, whose queries go along with the
            prefill. An object `original` in it, with the same names, has those of the original code.
        layers: of the policy's code; with 8 the times of `original` are taken, where there are some.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a time is missing, or is no number above 0.
    """
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"got {type(found).__name__} in {path}, expected an object with {[f'{s}_ms' for s in STAGES]}")
    if layers == 8:
        found = found | found.get("original", {})
    names = (*STAGES, "parallel") if "parallel_ms" in found else STAGES
    times = {stage: found.get(f"{stage}_ms") for stage in names}
    wrong = {f"{s}_ms": ms for s, ms in times.items() if not isinstance(ms, (int, float)) or not ms > 0}
    if wrong:
        raise ValueError(f"got {wrong} in {path}, expected milliseconds above 0 for {[f'{s}_ms' for s in STAGES]}")
    return {stage: float(ms) for stage, ms in times.items() if ms is not None}


def replay(rows: Iterable[EpisodeRow], times: Milliseconds) -> list[EpisodeRow]:
    """The rows with latencies from their passes: vision + prefill + draft (where one is) + passes * (pass + tail).

    Modes parallel and regression take what parallel was measured to take as a whole, where that is known: both have
    their queries in the prefill, and regression fewer of them.
    Nothing else is in them: no transfers, no gaps, no jitter of a stage. Percentiles vary by passes alone.
    """
    replayed = []
    for row in rows:
        stages = _stages(row, times)
        replayed.append(replace(row, ms=[sum(chunk) for chunk in zip(*stages.values(), strict=True)], ms_stages=stages))
    return replayed


def _stages(row: EpisodeRow, times: Milliseconds) -> dict[str, list[float]]:
    if row.settings.get("mode") in ("parallel", "regression") and "parallel" in times:
        rest = {"prefill": times["parallel"] - times["vision"], "draft": 0.0, "passes": 0.0, "tail": 0.0}
        return {name: [ms] * len(row.passes) for name, ms in {"vision": times["vision"], **rest}.items()}
    once = {"vision": times["vision"], "prefill": times["prefill"]}
    once |= {"draft": times["draft"] if row.settings.get("mode") in DRAFTED else 0.0}
    return {name: [ms] * len(row.passes) for name, ms in once.items()} | {
        "passes": [count * times["pass"] for count in row.passes],
        "tail": [count * times["tail"] for count in row.passes],
    }
