"""Metrics of a run: JSON Lines while it lasts, a picture of the curves at its end."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


class MetricsLog:
    """`metrics.jsonl` and `curves.png` in a folder; a row is one flat JSON object with `split`, `step`, `seconds`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.picture = folder / "curves.png"

    def clear(self) -> None:
        """Forgets what an earlier run wrote."""
        self.path.unlink(missing_ok=True)

    def write(self, split: str, step: int, seconds: float, metrics: dict[str, Any]) -> None:
        """Appends a row."""
        row = {"split": split, "step": step, "seconds": round(seconds, 2), **metrics}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a last line that a kill cut short is left out."""
        if not self.path.is_file():
            return []
        whole = (line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n"))
        return [json.loads(line) for line in whole]

    def keep_until(self, step: int) -> None:
        """Drops rows after `step`: a resumed run writes them again."""
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        self.path.write_text("".join(kept))

    def plot(self, title: str) -> None:
        """Draws one panel a metric, training and held-out curves together."""
        curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows():
            for name, value in row.items():
                if isinstance(value, float) and name != "seconds":
                    curves[name][row["split"]].append((row["step"], value))
        if not curves:
            return
        from matplotlib.figure import Figure

        columns = min(len(curves), 3)
        lines = -(-len(curves) // columns)
        figure = Figure(figsize=(4.5 * columns, 3 * lines), layout="constrained")
        figure.suptitle(title)
        for place, (name, splits) in enumerate(curves.items(), 1):
            axes = figure.add_subplot(lines, columns, place, title=name, xlabel="step")
            for split, points in splits.items():
                axes.plot(*zip(*points, strict=True), label=split.replace("_", " "))
            axes.legend()
        figure.savefig(self.picture, dpi=100)
