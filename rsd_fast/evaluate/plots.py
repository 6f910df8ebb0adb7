"""The report's figure: success, passes, latency and what the draft got right, as PNG and SVG."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .statistics import Group, Summary

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe and Ito
STAGE_COLOURS = ("#999999", "#56B4E9", "#0072B2", "#E69F00", "#009E73", "#CC79A7")
STYLE: Any = {  # matplotlib types the names one by one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rsd_fast",  # equal data, equal file
}


def save_plots(summary: Summary, folder: Path) -> list[Path]:
    """Writes report.png and report.svg; returns their paths."""
    with matplotlib.rc_context(STYLE):
        figure = draw(summary)
        paths = [folder / "report.png", folder / "report.svg"]
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def draw(summary: Summary) -> Figure:
    """Four panels; a mode has one colour in all of them."""
    lines = sum(1 + _wrapped(mode).count("\n") for mode in summary.modes)
    height = 6.4 + 0.45 * max(0, lines - 2)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.subplots(2, 2)
    colours = {mode: COLOURS[place % len(COLOURS)] for place, mode in enumerate(summary.modes)}
    success(axes[0, 0], summary, colours)
    passes(axes[0, 1], summary)
    latency(axes[1, 0], summary)
    layers(axes[1, 1], summary, colours)
    return figure


def success(axis: Any, summary: Summary, colours: dict[str, str]) -> None:
    """Success rates with Wilson intervals, modes side by side in each task."""
    tasks: list[str | None] = [*summary.tasks, None] if len(summary.tasks) > 1 else [*summary.tasks]
    for place, mode in enumerate(summary.modes):
        points = [(x, summary.group(mode, task)) for x, task in enumerate(tasks)]
        shown = [(x, group.success) for x, group in points if group and group.success.rate is not None]
        if not shown:
            continue
        rates = [share.rate or 0.0 for _, share in shown]
        below = [rate - (share.low or 0.0) for rate, (_, share) in zip(rates, shown, strict=True)]
        above = [(share.high or 0.0) - rate for rate, (_, share) in zip(rates, shown, strict=True)]
        axis.errorbar(
            [x + _offset(place, len(summary.modes), 0.5) for x, _ in shown],
            rates,
            yerr=[[max(0.0, value) for value in below], [max(0.0, value) for value in above]],
            fmt="o",
            markersize=5,
            capsize=3,
            color=colours[mode],
            label=mode,
        )
    axis.set_xticks(range(len(tasks)), [task or "all" for task in tasks])
    axis.set_xlim(-0.6, len(tasks) - 0.4)
    axis.set_ylim(0, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(axis="y", alpha=0.3)
    axis.set_title("Success (Wilson interval, 95 %)")
    _legend(axis)


def passes(axis: Any, summary: Summary) -> None:
    """Share of chunks by the passes that they took; the mean beside it."""
    counts = sorted({count for group in summary.over_all for count in group.passes_share})
    shades = matplotlib.colormaps["Blues"]
    for y, group in enumerate(summary.over_all):
        left = 0.0
        for count in counts:
            share = group.passes_share.get(count, 0.0)
            shade = shades(0.25 + 0.6 * (count - counts[0]) / max(1, counts[-1] - counts[0]))
            label = f"{count} passes".replace("1 passes", "1 pass") if y == 0 else None
            axis.barh(y, share, left=left, color=shade, height=0.55, label=label)
            left += share
        axis.text(1.02, y, f"{group.passes:.2f}" if group.passes is not None else "", va="center")
    axis.set_xlim(0, 1.0)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("chunks, by passes of the main model")
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
            axis.barh(y, ms, left=left, color=colour, height=0.55, label=name if y == 0 else None)
            left += ms
        for value, marker, name in ((group.ms_p50, "o", "p50"), (group.ms_p99, "D", "p99")):
            if value is not None:
                label = name if y == 0 else None
                axis.plot(value, y, marker, markersize=5, markerfacecolor="white", color="black", label=label)
    axis.set_xlim(left=0)
    axis.set_xlabel("ms a chunk (bars: means)")
    axis.set_title("Latency by stage")
    _mode_axis(axis, summary.over_all)
    _legend(axis)


def layers(axis: Any, summary: Summary, colours: dict[str, str]) -> None:
    """By drafted layer, the share of elements whose draft was kept in the first pass; outlined, where it agreed."""
    axis.set_title("Draft kept in the first pass")
    groups = [group for group in summary.over_all if group.kept_rates]
    if not groups:
        axis.text(0.5, 0.5, "no mode here drafts", ha="center", va="center", transform=axis.transAxes, color="grey")
        axis.set_axis_off()
        return
    width = 0.9 * 0.6 / len(groups)
    for place, group in enumerate(groups):
        xs = [layer + _offset(place, len(groups), 0.6) for layer in range(len(group.kept_rates))]
        label = f"{group.mode}: {group.accepted_layers:.2f} layers"
        axis.bar(xs, group.kept_rates, width=width, color=colours[group.mode], label=label)
        agreed = "agreed with main" if place == len(groups) - 1 else None
        axis.bar(xs, group.match_rates, width=width, fill=False, edgecolor="black", linestyle=":", label=agreed)
    depth = max(len(group.kept_rates) for group in groups)
    axis.set_xticks(range(depth), [f"layer {layer}" for layer in range(depth)])
    axis.set_xlim(-0.6, depth - 0.4)
    axis.set_ylim(0, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("elements of a chunk")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    _legend(axis)


def _mode_axis(axis: Any, groups: list[Group]) -> None:
    axis.set_yticks(range(len(groups)), [_wrapped(group.mode) for group in groups])
    spare = 0.5 if len(groups) > 1 else 1.2  # one bar need not fill the panel
    axis.set_ylim(len(groups) - 1 + spare, -spare)


def _wrapped(mode: str) -> str:
    return textwrap.fill(mode.replace(":", ": ").replace(",", ", "), 20)


def _legend(axis: Any) -> None:
    """Below the axis, out of the way of what fills it."""
    entries = len(axis.get_legend_handles_labels()[1])
    columns = entries if entries <= 3 else (entries + 1) // 2
    if max(map(len, axis.get_legend_handles_labels()[1]), default=0) > 20:  # long names of modes
        columns = 1
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns, fontsize=8)


def _offset(place: int, count: int, width: float) -> float:
    return (place - (count - 1) / 2) * width / count
