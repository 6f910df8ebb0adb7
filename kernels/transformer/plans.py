"""Which tiles a kernel runs with, or whether cuBLAS does the work: tables by architecture, measured.

A table is JSON, `{"add 4096x11008": {"64": {"block_m": 64, ...}, "640": "cublas-add"}}`: by op and shape of the weights
(outputs x inputs), then by rows; the entry of the fewest rows that are enough serves. Tables of sm_80 and sm_90 come
with the package (`tables/`); one that was measured on this very GPU is kept in the user's cache folder
(`$XDG_CACHE_HOME/rsd_fast`) and goes first. What no table knows runs with cuBLAS.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

TABLES = Path(__file__).with_name("tables")
FEW_ROWS = 128  # up to here a product is bound by its weights
CUBLAS, CUBLAS_ADD = "cublas", "cublas-add"
OPS = ("linear", "swiglu", "add")


@dataclass(frozen=True)
class Tile:
    """How a Triton product is launched.

    Attributes:
        block_m: rows of a program.
        block_n: outputs of a program; with SwiGLU as many gates, and as many ups.
        block_k: inputs a step.
        split: programs that share the inputs.
        warps: of a program.
        stages: steps that are loaded ahead.
        swap: whether the weights are the left factor of the tensor cores.
    """

    block_m: int
    block_n: int
    block_k: int
    split: int = 1
    warps: int = 4
    stages: int = 4
    swap: bool = False


@dataclass(frozen=True)
class AttentionTile:
    """How attention is launched.

    Attributes:
        block_q: queries of a program.
        block_k: keys a step.
        split: programs that share the keys.
        warps: of a program.
        stages: steps that are loaded ahead.
    """

    block_q: int
    block_k: int
    split: int = 1
    warps: int = 4
    stages: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError where a step is no whole number of the mask's words."""
        if self.block_k not in (32, 64, 128):
            raise ValueError(f"got block_k {self.block_k}, expected 32, 64 or 128")

    @classmethod
    def default(cls, tokens: int) -> AttentionTile:
        """What serves anywhere: few queries are spread over more programs."""
        if tokens <= 128:
            return cls(16 if tokens <= 16 else 32, 64, split=3)
        return cls(64, 64, warps=4, stages=2)


Choice = Tile | str
Table = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Plans:
    """Choices by op, shape and rows; later tables go first.

    Attributes:
        tables: see the module.
        source: where they are from.
    """

    tables: tuple[Table, ...] = ()
    source: str = "cuBLAS everywhere"
    _seen: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, device: torch.device | str) -> Plans:
        """Those for a device: its architecture's and what was measured on it; none where there is no GPU.

        Raises:
            ValueError: a table in the user's cache that cannot be read; the message says which.
        """
        device = torch.device(device)
        if device.type != "cuda":
            return cls()
        major, minor = torch.cuda.get_device_capability(device)
        return _plans_of(f"sm_{major}{minor}", str(cache_path(torch.cuda.get_device_name(device), major, minor)))

    def linear(self, op: str, rows: int, outputs: int, inputs: int) -> Choice:
        """A product's choice: a `Tile`, `cublas`, or, for op `add`, `cublas-add`: added where the sum stands."""
        found = self._find(f"{op} {outputs}x{inputs}", rows)
        if found is None:
            return CUBLAS_ADD if op == "add" and rows > FEW_ROWS else CUBLAS
        return found if isinstance(found, str) else Tile(**found)

    def attention(self, kind: str, tokens: int, heads: int, head_dim: int) -> AttentionTile:
        """The tile of `pass` or `prefill` attention."""
        found = self._find(f"{kind} attention {heads}x{head_dim}", tokens)
        return AttentionTile.default(tokens) if found is None else AttentionTile(**found)

    def _find(self, key: str, rows: int) -> Any:
        if (key, rows) not in self._seen:
            self._seen[key, rows] = next((hit for table in self.tables if (hit := _entry(table, key, rows))), None)
        return self._seen[key, rows]


def _entry(table: Table, key: str, rows: int) -> Any:
    enough = [int(count) for count in table.get(key, {}) if int(count) >= rows]
    return table[key][str(min(enough))] if enough else None


@cache
def _plans_of(architecture: str, cached: str) -> Plans:
    tables, sources = [], []
    if Path(cached).is_file():
        tables.append(read_table(Path(cached)))
        sources.append(cached)
    # A newer GPU takes the newest table there is: its tiles fit, and cuBLAS is named where nothing else won.
    known = sorted(path.stem for path in TABLES.glob("sm_*.json") if path.stem <= architecture)
    if known:
        tables.append(read_table(TABLES / f"{known[-1]}.json"))
        sources.append(f"{known[-1]} of the package")
    return Plans(tuple(tables), ", ".join(sources) or "cuBLAS everywhere")


def read_table(path: Path) -> Table:
    """A table from a file.

    Raises:
        ValueError: no JSON, or entries that are no choices; the message says what to do.
    """
    try:
        table = json.loads(path.read_text())
        for key, rows in table.items():
            kind = AttentionTile if " attention " in key else Tile
            for count, choice in rows.items():
                int(count)
                if choice not in (CUBLAS, CUBLAS_ADD):
                    kind(**choice)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of tiles ({error}); delete it, or make it anew") from error
    return table


def entry_of(choice: Choice | AttentionTile) -> Any:
    """A choice as a table holds it."""
    return choice if isinstance(choice, str) else asdict(choice)


def write_table(path: Path, table: Table) -> None:
    """Writes a table whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(table, indent=1) + "\n")
    draft.replace(path)


def cache_path(gpu: str, major: int, minor: int) -> Path:
    """Where a GPU's own table is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return Path(root) / "rsd_fast" / "tiles" / f"{name}-sm_{major}{minor}.json"
