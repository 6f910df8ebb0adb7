"""`rsd-fast tune`: the tiles of a model's shapes, measured on this GPU and kept in the user's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table

from rsd_fast.kernels.transformer.plans import cache_path, read_table, write_table
from rsd_fast.kernels.transformer.tuning import Work, best_of, compile_in_pool, model_work, shared_bytes, sweep
from rsd_fast.models.checkpoints import resolve_checkpoint
from rsd_fast.models.main import MainConfig
from rsd_fast.models.presets import MAIN_PRESETS, OPENVLA_PRESETS
from rsd_fast.models.tune_config import TuneConfig
from rsd_fast.progress import progress_bar

PREFILL_STEP = 64  # an entry serves every prefill up to its rows


def run(config: TuneConfig) -> None:
    """Measures what was not measured before it was stopped, prints a table, and writes the GPU's own.

    Raises:
        RuntimeError: there is no NVIDIA GPU.
        ValueError: an unknown model.
        FileNotFoundError: a model that is not there.
    """
    work = work_of(model_config(config.model), config.queries, config.batches)
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} sees no NVIDIA GPU, and tiles are measured on the one that they are for; "
            "run it there"
        )
    properties = torch.cuda.get_device_properties(0)
    path = cache_path(properties.name, properties.major, properties.minor)
    console = Console(stderr=True)
    console.print(f"measuring for {properties.name}, triton {triton.__version__}", highlight=False)
    rows = measure(work, path.with_suffix(".partial.json"), shared_bytes(), config.quick)
    table = {key: dict(entries) for key, entries in read_table(path).items()} if path.is_file() else {}
    for key, entries in best_of(rows).items():
        table[key] = {**table.get(key, {}), **entries}
    write_table(path, table)
    path.with_suffix(".partial.json").unlink(missing_ok=True)
    Console().print(summary(work, rows))
    console.print(f"wrote {path}", highlight=False)


def model_config(name: str) -> MainConfig:
    """Of a preset, or of a policy's main model."""
    presets = MAIN_PRESETS | OPENVLA_PRESETS
    if name in presets:
        return presets[name]
    return MainConfig(**json.loads((resolve_checkpoint(name) / "main" / "config.json").read_text()))


def work_of(config: MainConfig, queries: tuple[int, ...], batches: tuple[int, ...]) -> list[Work]:
    """Every product and attention of a policy's passes and prefills."""
    if not queries or not batches or min(*queries, *batches) < 1:
        raise ValueError(f"got queries {list(queries)} and batches {list(batches)}, expected numbers from 1 up")
    backbone, prefix = config.backbone, config.prefix_tokens
    prefills = {-(-batch * (prefix + max(queries)) // PREFILL_STEP) * PREFILL_STEP for batch in batches}
    passes = {batch * count for batch in batches for count in queries}
    return model_work(
        backbone.width, backbone.mlp_width, backbone.heads, prefix, sorted(passes), sorted(prefills)
    )


def measure(work: list[Work], partial: Path, shared: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of every candidate; those that stand in `partial` already, by the same Triton, are not measured again."""
    rows: list[dict[str, Any]] = []
    if partial.is_file():
        found = json.loads(partial.read_text())
        rows = found["rows"] if found["triton"] == triton.__version__ else []
    done = {(row["key"], row["rows"]) for row in rows}
    left = [item for item in work if (item.key, item.rows) not in done]
    compile_in_pool([(item, choice) for item in left for choice in item.candidates(shared, quick)])
    with progress_bar("measuring", len(left)) as advance:
        for item in left:
            rows += sweep(item, item.candidates(shared, quick))
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"triton": triton.__version__, "rows": rows}))
            advance(1)
    return rows


def summary(work: list[Work], rows: list[dict[str, Any]]) -> Table:
    """What won, and by how much over cuBLAS."""
    table = Table("op", "rows", "best", "us", "GB/s", "cuBLAS us")
    for item in work:
        timed = [row for row in rows if (row["key"], row["rows"]) == (item.key, item.rows) and row["us"] is not None]
        if not timed:
            table.add_row(item.key, str(item.rows), "none ran", "", "", "")
            continue
        best = min(timed, key=lambda row: row["us"])
        cublas = min((row["us"] for row in timed if isinstance(row["choice"], str)), default=None)
        choice = best["choice"] if isinstance(best["choice"], str) else tile_text(best["choice"])
        against = "" if cublas is None else f"{cublas:.1f}"
        table.add_row(item.key, str(item.rows), choice, f"{best['us']:.1f}", f"{best['gbps']:.0f}", against)
    return table


def tile_text(tile: dict[str, Any]) -> str:
    """A tile in one cell."""
    return ", ".join(f"{name} {value}" for name, value in tile.items())
