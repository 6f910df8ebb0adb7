"""The report's figures as files, PNG and SVG: an overview, and for a paper each panel and the Pareto front alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from .pareto import draw_pareto
from .plots import PANELS, STYLE, draw, draw_alone, save
from .statistics import Summary


def save_figures(summary: Summary, folder: Path) -> list[Path]:
    """Writes report.png and report.svg, and plots/NAME.png and .svg; returns the paths."""
    with matplotlib.rc_context(STYLE):
        figures = {"report": draw(summary), **{f"plots/{name}": draw_alone(name, summary) for name in PANELS}}
        fronts = {"latency": draw_pareto(summary, "ms_p50"), "passes": draw_pareto(summary, "passes")}
        figures |= {f"plots/pareto_{name}": figure for name, figure in fronts.items() if figure is not None}
        return [path for name, figure in figures.items() for path in save(figure, folder / name)]
