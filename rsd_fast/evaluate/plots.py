"""Panels of the report's figures, and the overview that has most of them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from .statistics import Group, Summary
from .tables import plural

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito
STAGE_COLOURS = ("#BBBBBB", "#88CCEE", "#332288", "#DDCC77", "#117733", "#CC6677", "#AA4499")  # Tol, muted
FEW = len(COLOURS)  # modes that colours can tell apart; more of them become a table of shades
LONG_NAME = 16  # characters of a task's name on an axis
SHORT_TITLES = {"success": "Success", "phases": "Passes by phase", "layers": "Draft kept", "latency": "Latency"}
STYLE: Any = {  # matplotlib types the names one by one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rsd_fast",  # equal data, equal file
}


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as PATH.png and PATH.svg; the caller has set the style."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # its work is done, and would be done again for each file
    figure.savefig(path.with_name(path.name + ".png"), dpi=200)
    figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})
    return [path.with_name(path.name + ending) for ending in (".png", ".svg")]


def draw(summary: Summary) -> Figure:
    """All panels but the Pareto front; a mode has one colour in all of them, or one line, where there are many."""
    if len(summary.modes) > FEW:
        return _draw_lines(summary)
    rows = [_height(summary, name) - 0.2 for name in ("success", "latency", "phases")]
    figure = Figure(figsize=(10, sum(rows) + 0.4), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    grid = figure.add_gridspec(3, 2, height_ratios=rows)
    success(figure.add_subplot(grid[0, :]), summary)
    passes(figure.add_subplot(grid[1, 0]), summary)
    latency(figure.add_subplot(grid[1, 1]), summary)
    phases(figure.add_subplot(grid[2, 0]), summary)
    layers(figure.add_subplot(grid[2, 1]), summary)
    _mode_legend(figure, summary, "success")
    return figure


def _draw_lines(summary: Summary) -> Figure:
    """A line a mode, panels side by side."""
    columns = {
        success: len(_places(summary)[1]),
        phases: max(len(group.phases) for group in summary.over_all),
        layers: max(2, *(len(group.kept_rates) for group in summary.over_all)),
        latency: 5,
    }
    widths = [0.55 * count + 0.2 for count in columns.values()]
    figure = Figure(figsize=(3.6 + sum(widths), _height(summary, "latency")), layout="constrained")
    axes = figure.subplots(1, len(columns), width_ratios=widths)
    for panel, axis in zip(columns, axes, strict=True):
        panel(axis, summary)
        axis.set_title(SHORT_TITLES[panel.__name__])
        if axis is not axes[0]:
            axis.set_yticks([])
    return figure


# ---- panels


def success(axis: Any, summary: Summary) -> None:
    """Success rates by task, or by suite where there are several; with Wilson intervals where modes are few."""
    places, names = _places(summary)
    axis.set_title("Success" if len(summary.modes) > FEW else "Success (Wilson interval, 95 %)")
    groups = {mode: [summary.group(mode, task, suite) for suite, task in places] for mode in summary.modes}
    if len(summary.modes) > FEW:
        table = [[group.success.rate if group else None for group in groups[mode]] for mode in summary.modes]
        _shades(axis, summary.modes, names, table, _as_percent)
        return
    long = max(map(len, names)) > LONG_NAME  # a line each then, with room for the name
    for place, mode in enumerate(summary.modes):
        shown = [(x, g.success.bars) for x, g in enumerate(groups[mode]) if g and g.success.bars]
        xs = [x + offset(place, len(summary.modes), 0.6) for x, _ in shown]
        rates = [rate for _, (rate, _, _) in shown]
        around = [[below for _, (_, below, _) in shown], [above for _, (_, _, above) in shown]]
        points = (rates, xs) if long else (xs, rates)
        bars = {"xerr" if long else "yerr": around}
        axis.errorbar(*points, **bars, fmt="o", markersize=4.5, capsize=2.5, color=COLOURS[place])
    low = min((group.success.low or 0.0 for own in groups.values() for group in own if group), default=0.0)
    limits = max(0.0, np.floor(10 * low) / 10), 1.02
    if long:
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(*limits)
    else:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_ylim(*limits)
    (axis.xaxis if long else axis.yaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(axis="x" if long else "y", alpha=0.3)


def passes(axis: Any, summary: Summary) -> None:
    """Share of chunks by the passes that they took; the mean beside it."""
    counts = sorted({count for group in summary.over_all for count in group.passes_share})
    shades = matplotlib.colormaps["Blues"]
    for y, group in enumerate(summary.over_all):
        left = 0.0
        for count in counts:
            share = group.passes_share.get(count, 0.0)
            shade = shades(0.25 + 0.6 * (count - counts[0]) / max(1, counts[-1] - counts[0]))
            axis.barh(y, share, left=left, color=shade, height=0.6, label=plural(count, "pass") if y == 0 else None)
            left += share
        axis.text(1.02, y, f"{group.passes:.2f}" if group.passes is not None else "", va="center")
    axis.set_xlim(0, 1.0)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("share of chunks")
    axis.set_title("Passes a chunk (mean at the right)")
    _mode_axis(axis, summary.over_all)
    _legend(axis)


def latency(axis: Any, summary: Summary) -> None:
    """Mean latency by stage, stacked; marks at p50 and p99."""
    names = list(dict.fromkeys(name for group in summary.over_all for name in group.ms_stages))
    for y, group in enumerate(summary.over_all):
        left = 0.0
        for name, colour in zip(names, STAGE_COLOURS, strict=False):
            ms = group.ms_stages.get(name, 0.0)
            axis.barh(y, ms, left=left, color=colour, height=0.6, label=name if y == 0 else None)
            left += ms
        for value, marker, name in ((group.ms_p50, "o", "p50"), (group.ms_p99, "D", "p99")):
            if value is not None:
                label = name if y == 0 else None
                axis.plot(value, y, marker, markersize=4.5, markerfacecolor="white", color="black", label=label)
    axis.set_xlim(left=0)
    axis.set_xlabel("ms a chunk (bars: means)")
    axis.set_title("Latency by stage")
    _mode_axis(axis, summary.over_all)
    _legend(axis)


def phases(axis: Any, summary: Summary) -> None:
    """Mean passes by phase of the episode."""
    axis.set_title("Passes by phase of the episode")
    names = list(dict.fromkeys(name for group in summary.over_all for name in group.phases))
    values = [
        [group.phases[name].passes if name in group.phases else None for name in names] for group in summary.over_all
    ]
    _bars_or_shades(axis, summary.over_all, summary, names, values, "{:.2f}".format)
    if len(summary.modes) <= FEW:
        axis.set_ylabel("passes a chunk")


def layers(axis: Any, summary: Summary) -> None:
    """By drafted layer, the share of elements whose drafted code was kept in the first pass."""
    axis.set_title("Draft kept in the first pass")
    groups = [group for group in summary.over_all if group.kept_rates]
    if not groups:
        axis.text(0.5, 0.5, "no mode here drafts", ha="center", va="center", transform=axis.transAxes, color="grey")
        axis.set_axis_off()
        return
    depth = max(len(group.kept_rates) for group in groups)
    if len(summary.modes) > FEW:
        groups = summary.over_all  # a line each, as in the other panels
    values = [[*group.kept_rates, *[None] * (depth - len(group.kept_rates))] for group in groups]
    _bars_or_shades(axis, groups, summary, [f"layer {layer}" for layer in range(depth)], values, _as_percent)
    if len(summary.modes) <= FEW:
        axis.set_ylim(0, 1.08)  # room for the numbers
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_ylabel("elements of a chunk")


PANELS: dict[str, Callable[[Any, Summary], None]] = {
    "success": success,
    "passes": passes,
    "latency": latency,
    "phases": phases,
    "acceptance": layers,
}


def draw_alone(name: str, summary: Summary) -> Figure:
    """One of `PANELS` as a figure of its own."""
    figure = Figure(figsize=(5.2, _height(summary, name)), layout="constrained")
    PANELS[name](figure.subplots(), summary)
    _mode_legend(figure, summary, name)
    return figure


# ---- pieces


def pretty(mode: str) -> str:
    """A mode's label for people, `rsd:draft=coarse,theta=0.5` -> `rsd coarse, \u03b8 0.5`; unbroken after names."""
    name, _, settings = mode.partition(":")
    bare, words = ("draft", "rule", "granularity"), {"theta": "\u03b8"}
    parts = [item.partition("=") for item in filter(None, settings.split(","))]
    told = [v if key in bare else "\u00a0".join([*words.get(key, key).split("_"), v]) for key, _, v in parts]
    return f"{name} {', '.join(told)}".rstrip()


def legend_columns(figure: Figure, handles: Sequence[Any]) -> int:
    """As many as fit the figure's width, with the longest label in each."""
    longest = max(len(handle.get_label()) for handle in handles)
    return max(1, min(len(handles), int(figure.get_figwidth() * 15 // (longest + 8))))  # 15 characters an inch, about


def offset(place: int, count: int, width: float) -> float:
    """Where the `place`-th of `count` marks side by side stands, from the middle."""
    return (place - (count - 1) / 2) * width / count


def _bars_or_shades(
    axis: Any,
    groups: list[Group],
    summary: Summary,
    names: list[str],
    values: list[list[float | None]],
    tell: Callable[[float], str],
) -> None:
    """Bars with their values where modes are few."""
    if len(summary.modes) > FEW:
        _shades(axis, [group.mode for group in groups], names, values, tell)
        return
    width = 0.8 / max(1, len(groups))
    for place, (group, own) in enumerate(zip(groups, values, strict=True)):
        known = [(x, value) for x, value in enumerate(own) if value is not None]
        xs = [x + offset(place, len(groups), 0.8) for x, _ in known]
        colour = COLOURS[summary.modes.index(group.mode)]
        bars = axis.bar(xs, [value for _, value in known], width=0.92 * width, color=colour)
        if len(groups) * len(names) <= 12:
            axis.bar_label(bars, [tell(value) for _, value in known], padding=1, fontsize=7)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _shades(
    axis: Any, modes: list[str], names: list[str], values: list[list[float | None]], tell: Callable[[float], str]
) -> None:
    """A row a mode, a column a name; shade and number say the value."""
    table = np.array([[np.nan if value is None else value for value in row] for row in values], float)
    known = table[np.isfinite(table)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    axis.imshow(table, cmap="cividis", aspect="auto", vmin=low, vmax=max(high, low + 1e-9))
    for y, x in np.argwhere(np.isfinite(table)):
        dark = (table[y, x] - low) / max(high - low, 1e-9) < 0.55
        axis.text(x, y, tell(table[y, x]), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    tilted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if _are_long(names) else {}
    axis.set_xticks(range(len(names)), names, **tilted)
    axis.set_yticks(range(len(modes)), [_wrapped(mode) for mode in modes])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _places(summary: Summary) -> tuple[list[tuple[str | None, str | None]], list[str]]:
    """What success is shown for (suite, task), and its names on the axis."""
    if len(summary.suites) > 1:
        return [*((suite, None) for suite in summary.suites), (None, None)], [*summary.suites, "all"]
    places: list[tuple[str | None, str | None]] = [*summary.tasks]
    names = [summary.short[task] for task in summary.tasks]
    return ([*places, (None, None)], [*names, "all"]) if len(places) > 1 else (places, names)


def _height(summary: Summary, panel: str) -> float:
    """Inches that a panel needs."""
    lines = sum(1 + _wrapped(mode).count("\n") for mode in summary.modes)
    names = _places(summary)[1]
    if len(summary.modes) > FEW:
        return 1.5 + 0.2 * lines + (0.05 * max(map(len, names)) if _are_long(names) else 0.0)
    if panel == "success" and max(map(len, names)) > LONG_NAME:
        return 1.2 + len(names) * (0.16 + 0.07 * len(summary.modes))
    return 1.5 + 0.2 * lines + 0.08 * len(summary.modes) if panel in ("passes", "latency") else 3.0


def _are_long(names: list[str]) -> bool:
    """Whether the names of columns, side by side, would run into each other."""
    return max(map(len, names), default=0) > 7


def _mode_axis(axis: Any, groups: list[Group]) -> None:
    axis.set_yticks(range(len(groups)), [_wrapped(group.mode) for group in groups])
    spare = 0.5 if len(groups) > 1 else 1.2  # one bar need not fill the panel
    axis.set_ylim(len(groups) - 1 + spare, -spare)


def _mode_legend(figure: Figure, summary: Summary, panel: str) -> None:
    """Over the figure, where colours stand for modes."""
    if panel in ("passes", "latency") or len(summary.modes) > FEW:
        return
    patches = [matplotlib.patches.Patch(color=COLOURS[n], label=pretty(m)) for n, m in enumerate(summary.modes)]
    figure.legend(handles=patches, loc="outside upper center", ncols=legend_columns(figure, patches))


def _legend(axis: Any) -> None:
    """Below the axis, out of the way of what fills it."""
    entries = len(axis.get_legend_handles_labels()[1])
    if entries == 0:  # an expert's episodes have no passes
        return
    columns = entries if entries <= 5 else (entries + 1) // 2
    below = axis.transAxes + ScaledTranslation(0, -0.45, axis.get_figure().dpi_scale_trans)  # inches
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=columns, columnspacing=1.2)


def _wrapped(mode: str) -> str:
    return textwrap.fill(pretty(mode), 40)


def _as_percent(value: float) -> str:
    return f"{100 * value:.0f} %"
