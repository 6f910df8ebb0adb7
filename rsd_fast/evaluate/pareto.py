"""The Pareto figure: success against latency or passes, over the settings of RSD that an evaluation has."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from .plots import COLOURS, legend_columns, pretty
from .statistics import Cost, Group, Summary, front

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "*")
FAMILY = ("draft", "granularity", "keep", "stop", "expected_last", "temperature", "replan")  # one panel each
COLUMNS = 3
TITLE_WIDTH = 36  # characters, of a panel's title at its size
NAMES: dict[Cost, str] = {
    "ms_p50": "median latency of a chunk [ms]",
    "ms_mean": "mean latency of a chunk [ms]",
    "action_ms": "median latency of an action [ms]",
    "action_ms_mean": "mean latency of an action [ms]",
    "passes": "passes a chunk (mean)",
}
BY_ACTION: dict[Cost, Cost] = {"ms_p50": "action_ms", "ms_mean": "action_ms_mean"}


def draw_pareto(summary: Summary, cost: Cost) -> Figure | None:
    """Success with its Wilson interval against `cost`, each mode a point; None with fewer than two.

    Latency is that of a chunk; where modes differ in the replan interval, that of an action.

    Modes of RSD that differ in rule and theta share a panel; its marker says the rule, its colour theta (or the rule,
    where there is one theta), and the other panels' points are grey in it. The dashed line is the Pareto front over all
    modes. The caller has set the style.
    """
    if len({group.replan for group in summary.over_all}) > 1:  # a chunk of four actions and one of eight do not compare
        cost = BY_ACTION.get(cost, cost)
    groups = [g for g in summary.over_all if getattr(g, cost) is not None and g.success.rate is not None]
    if len(groups) < 2:
        return None
    settings = summary.settings
    drafted = [g for g in groups if settings[g.mode].get("mode") == "rsd"]
    others = [g for g in groups if g not in drafted]
    varied = [name for name in FAMILY if len({str(settings[g.mode].get(name)) for g in drafted}) > 1]
    families: dict[tuple[Any, ...], list[Group]] = {}
    for group in drafted:
        families.setdefault(tuple(settings[group.mode].get(name) for name in varied), []).append(group)
    panels = families or {(): []}
    columns = 2 if len(panels) == 4 else min(len(panels), COLUMNS)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.6, 3.3 * columns), 0.9 + 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    look = _Look(drafted, others, settings)
    for axis, (values, own) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, own, groups, cost, look)
        told = [_told(name, value).replace(" ", "\u00a0") for name, value in zip(varied, values, strict=True)]
        axis.set_title(textwrap.fill(", ".join(told), TITLE_WIDTH), fontsize=9)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:
        axis.xaxis.set_tick_params(labelbottom=True)  # also where nothing is below in an unfinished row
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[0, 0].set_ylim(*_limits(groups))
    figure.supxlabel(NAMES[cost], fontsize=9)
    figure.supylabel("success (Wilson interval, 95 %)", fontsize=9)
    handles = look.handles()
    figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns(figure, handles))
    return figure


def _told(name: str, value: object) -> str:
    """A setting of `FAMILY` in words."""
    match name, value:
        case "draft", _:
            return f"{value} draft"
        case "granularity", _:
            return f"by {value}"
        case "keep", _:
            return f"keeps {value}'s"
        case "expected_last", True:
            return "last digit expected"
        case "expected_last", False:
            return "last digit argmax"
    return f"{name.replace('_', ' ')} {value}"


class _Look:
    """Colour and marker of a group, and the legend that explains them."""

    def __init__(self, drafted: list[Group], others: list[Group], settings: dict[str, dict[str, Any]]) -> None:
        self.settings = settings
        self.rules = list(dict.fromkeys(str(settings[g.mode].get("rule")) for g in drafted))
        self.thetas = sorted({float(settings[g.mode].get("theta", 1.0)) for g in drafted})
        self.others = [group.mode for group in others]

    def __call__(self, group: Group) -> tuple[str, Any]:
        if group.mode in self.others:
            return self.mark(group.mode), "black"
        own = self.settings[group.mode]
        rule = self.rules.index(str(own.get("rule")))
        colour = COLOURS[rule % len(COLOURS)]
        if len(self.thetas) > 1:
            colour = self._shade(self.thetas.index(float(own.get("theta", 1.0))))
        return MARKERS[rule % len(MARKERS)], colour

    def handles(self) -> list[Line2D]:
        """Of the legend."""
        black: Any = {"color": "black", "linestyle": ""}
        marks = [Line2D([], [], marker=self.mark(mode), label=pretty(mode), **black) for mode in self.others]
        for place, rule in enumerate(self.rules):
            colour = "grey" if len(self.thetas) > 1 else COLOURS[place % len(COLOURS)]
            marker = MARKERS[place % len(MARKERS)]
            marks.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=f"rule {rule}"))
        if len(self.thetas) > 1:
            marks += [
                Line2D([], [], color=self._shade(place), linewidth=5, label=f"\u03b8 {theta:g}")
                for place, theta in enumerate(self.thetas)
            ]
        return [*marks, Line2D([], [], color="0.4", linestyle="--", linewidth=1, label="Pareto front")]

    def mark(self, mode: str) -> str:
        """Marker of a mode that is not RSD."""
        return MARKERS[::-1][self.others.index(mode) % len(MARKERS)]

    def _shade(self, place: int) -> Any:
        return matplotlib.colormaps["viridis"](0.92 * (1 - place / (len(self.thetas) - 1)))


def _panel(axis: Any, own: list[Group], groups: list[Group], cost: Cost, look: _Look) -> None:
    best = front(groups, cost)
    xs, rates = [getattr(group, cost) for group in best], [group.success.rate for group in best]
    axis.plot(xs, rates, color="0.4", linestyle="--", linewidth=1, drawstyle="steps-post", zorder=1)
    for group in groups:
        x, share = getattr(group, cost), group.success
        if group not in own and group.mode not in look.others:
            axis.plot(x, share.rate, ".", color="0.8", markersize=5, zorder=1)
            continue
        assert share.bars is not None  # draw_pareto has left out groups without episodes
        marker, colour = look(group)
        rate, below, above = share.bars
        axis.errorbar(x, rate, yerr=[[below], [above]], color=colour, linewidth=0.8, capsize=2, alpha=0.6, zorder=2)
        size = 10 if marker == "*" else 6
        axis.plot(x, rate, marker, color=colour, markersize=size, markeredgecolor="white", zorder=3)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def _limits(groups: list[Group]) -> tuple[float, float]:
    low = min(group.success.low or 0.0 for group in groups)
    return max(0.0, low - 0.04), 1.02
