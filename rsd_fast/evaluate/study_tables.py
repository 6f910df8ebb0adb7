"""Tables of the study."""

from __future__ import annotations

from collections.abc import Sequence

from . import tables
from .statistics import Group, Summary, compare
from .study_data import Policy
from .verdict import judge, mean_speedup


def overview(summary: Summary, suite: str | None = None) -> tables.Rows:
    """One row a mode, over everything or in a suite: success, paired difference, passes, also by phase, kept layers."""
    rows = []
    for mode in summary.modes:
        if (group := summary.group(mode, suite=suite)) is None:
            continue
        row = {
            "mode": mode,
            "success": tables.fraction(group.success, group.errors),
            "95 %": tables.interval(group.success),
            "pairs": "",
            "here": "",
            f"{summary.baseline} there": "",
            "difference": "",
            "difference, 95 %": "",
            "McNemar p": "",
            "passes": tables.number(group.passes, 2),
            "in successes": tables.number(group.passes_won, 2),
        }
        if test := group.paired:
            row |= {
                "pairs": str(test.pairs),
                "here": str(test.both + test.gained) if test.pairs else "",
                f"{summary.baseline} there": str(test.both + test.lost) if test.pairs else "",
                "difference": tables.points(test.difference),
                "difference, 95 %": tables.span(test),
                "McNemar p": f"{test.p_value:.2g}" if test.pairs else "",
            }
        row |= {f"in {name}": tables.number(phase.passes, 2) for name, phase in group.phases.items()}
        row |= {f"layer {layer}": tables.percent(rate) for layer, rate in enumerate(group.kept_rates)}
        rows.append(row)
    return rows


def by_suite(summary: Summary) -> tables.Rows:
    """Success of every mode in every suite, and over all."""
    rows = []
    for mode in summary.modes:
        row = {"mode": mode}
        for suite in (*summary.suites, None):
            group = summary.group(mode, suite=suite)
            share = f"{tables.fraction(group.success, group.errors)} {_bracket(group)}".strip() if group else ""
            row[suite or "all"] = share
        rows.append(row)
    return rows


def by_task(policy: Policy) -> tables.Rows:
    """Success and passes of the baseline and of the setting that the page looks at, task by task, paired."""
    summary, setting = policy.measured, policy.setting
    modes = [summary.baseline, *([setting.mode] if setting else [])]
    rows = []
    for suite, task in summary.tasks:
        row = {"suite": suite} if len(summary.suites) > 1 else {}
        row["task"] = summary.short[suite, task]
        for mode in modes:
            group = summary.group(mode, task, suite)
            row[mode] = tables.fraction(group.success, group.errors) if group else ""
        if setting and (group := summary.group(setting.mode, task, suite)):
            test = group.paired
            row |= {"only the first": str(test.lost), "only the second": str(test.gained)} if test else {}
            row["passes"] = tables.number(group.passes, 2)
        rows.append(row)
    return rows


def latencies(summary: Summary, prefix: dict[str, str] | None = None) -> tables.Rows:
    """One row a mode over everything: latency, and what it is of the baseline's."""
    return [
        {**(prefix or {}), "mode": group.mode, "passes": tables.number(group.passes, 2)} | latency_cells(group, summary)
        for group in summary.over_all
    ]


def latency_cells(group: Group, summary: Summary) -> dict[str, str]:
    """Mean and percentiles of a chunk, speedup of the mean, verdict."""
    base = summary.group(summary.baseline, group.task, group.suite)
    return {
        "ms mean": tables.number(group.ms_mean, 2),
        "ms p50": tables.number(group.ms_p50, 2),
        "ms p99": tables.number(group.ms_p99, 2),
        "speedup": tables.number(mean_speedup(group, base), 2, "x") if base else "",
        "verdict": judge(group, summary).text,
    }


def phases(summary: Summary) -> tables.Rows:
    """By phase of the episode, over everything; without modes that draft nothing and always take the same passes."""
    varied = {group.mode for group in summary.over_all if len(group.passes_share) > 1 or group.kept_rates}
    rows = [row for row in tables.by_phase(summary) if row.get("suite", "all") == "all" and row["mode"] in varied]
    return [{name: cell for name, cell in row.items() if name != "suite"} for row in rows]


def between(policies: Sequence[Policy]) -> str:
    """The baseline and the setting of every policy, paired with the first one's baseline."""
    first = policies[0]
    reference = first.of(first.measured.baseline)
    clock = "ms mean, replayed" if first.replayed else "ms mean"
    rows = []
    for policy in policies:
        setting = policy.setting
        for mode in dict.fromkeys([policy.measured.baseline, *([setting.mode] if setting else [])]):
            group, timed = policy.measured.group(mode), policy.judged.group(mode)
            assert group is not None and timed is not None
            test = compare(policy.of(mode), reference, first.measured.baseline, across=True)
            is_reference = policy is first and mode == first.measured.baseline
            speed = mean_speedup(timed, base) if (base := first.judged.group(first.measured.baseline)) else None
            rows.append(
                {
                    "policy": policy.name,
                    "code": code(policy),
                    "mode": mode,
                    "success": tables.fraction(group.success, group.errors),
                    "95 %": tables.interval(group.success),
                    "pairs": "" if is_reference else str(test.pairs),
                    "difference": "" if is_reference else tables.points(test.difference),
                    "difference, 95 %": "" if is_reference else tables.span(test),
                    "McNemar p": "" if is_reference or not test.pairs else f"{test.p_value:.2g}",
                    "passes": tables.number(group.passes, 2),
                    "ms a pass": tables.number(policy.times["pass"], 2) if policy.times else "",
                    clock: tables.number(timed.ms_mean, 1),
                    "speedup": tables.number(speed, 2, "x"),
                }
            )
    rows = [{name: cell for name, cell in row.items() if any(other[name] for other in rows)} for row in rows]
    return (
        f"## Between policies\n\nDifferences and speedups are to `{first.measured.baseline}` of {first.name}. Pairs "
        "are of one task, initial state and seed, played by either policy; the devices may differ. The policies were "
        "trained apart, so a difference is one of two trainings, not of two codes alone.\n\n" + tables.markdown(rows)
    )


def code(policy: Policy) -> str:
    """The code of a policy and the queries of a pass, `L 3, V 5: 24 queries`; empty where records do not say."""
    settings = next((row.settings for row in policy.rows if row.settings.get("layers")), {})
    told = [f"{name} {settings[key]}" for name, key in (("L", "layers"), ("V", "levels")) if key in settings]
    return f"{', '.join(told)}: {settings['layers'] * settings['chunk']} queries" if told else ""


def _bracket(group: Group) -> str:
    return f"({text})" if (text := tables.interval(group.success)) else ""
