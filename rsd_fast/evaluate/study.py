"""`rsd-fast study`: from records of several settings, suites and policies to one page that says where RSD pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from . import tables
from .config import EXPERT, StudyConfig
from .films import slug
from .geometry import Milliseconds, read_geometry, replay
from .pareto import draw_pareto
from .plots import STYLE, save
from .records import EpisodeRow, Records, mode_order, write_text
from .report import conditions, in_order, notes
from .statistics import Group, Summary, compare, summarise
from .verdict import THRESHOLDS, Kind, break_even, judge, judge_rival, least, mean_speedup, recommend


@dataclass(frozen=True)
class Policy:
    """One checkpoint's part of a study.

    Attributes:
        rows: in the order of a report.
        measured: latencies as recorded.
        replayed: latencies of another geometry, from `times`; None without one.
    """

    name: str
    rows: list[EpisodeRow]
    measured: Summary
    replayed: Summary | None
    times: Milliseconds | None

    @property
    def judged(self) -> Summary:
        """What verdicts are about: the other geometry, where there is one."""
        return self.replayed or self.measured


def run(config: StudyConfig) -> int:
    """Writes the page and its figures. Returns the exit status.

    Raises:
        FileNotFoundError: a folder without rows, or no such JSON of stages.
        ValueError: rows that do not belong together, an unknown baseline, or a time that is missing.
    """
    policies = read_policies(config)
    text = "\n\n".join([front(config, policies), *(section(config, policy) for policy in policies)])
    if len(policies) > 1:
        text += "\n\n" + between(policies)
    write_text(config.out, text + "\n")
    print(config.out)
    return 0


def read_policies(config: StudyConfig) -> list[Policy]:
    """Folders of one checkpoint make one policy, in the order in which they were given."""
    if not config.folders:
        raise ValueError("got no folder, expected at least one that `rsd-fast eval --out` wrote")
    folders: dict[str, list[Path]] = {}
    for folder in config.folders:
        rows = Records.merge([folder]).rows
        if not rows:
            raise ValueError(f"got no episodes in {folder}, expected at least one")
        checkpoints = [str(row.settings["checkpoint"]) for row in rows.values() if row.mode != EXPERT]
        folders.setdefault(checkpoints[0] if checkpoints else EXPERT, []).append(folder)
    names = [Path(checkpoint).name for checkpoint in folders]
    return [
        _policy(config, name if names.count(name) == 1 else checkpoint, folders[checkpoint])
        for name, checkpoint in zip(names, folders, strict=True)
    ]


def _policy(config: StudyConfig, name: str, folders: list[Path]) -> Policy:
    records = Records.merge(folders)
    rows, modes = in_order(records, folders), mode_order(records, folders)
    measured = summarise(rows, modes, config.baseline)
    if config.stages is None:
        return Policy(name, rows, measured, None, None)
    times = read_geometry(config.stages, next((layers for row in rows if (layers := row.settings.get("layers"))), None))
    return Policy(name, rows, measured, summarise(replay(rows, times), modes, config.baseline), times)


# ---- the page


def front(config: StudyConfig, policies: Sequence[Policy]) -> str:
    """Title, what every report has to say, and the answer."""
    said = dict.fromkeys(note for policy in policies for note in notes(policy.rows))
    where = f"replayed at the geometry of `{config.stages.name}`" if config.stages else "as measured"
    answers = [f"- **{policy.name}**: {answer(policy)}" for policy in policies]
    return "\n\n".join(
        [
            "# Where residual speculative decoding pays",
            *(f"**{note}**" for note in said),
            f"Made from records by `rsd-fast study`. Latencies in the verdicts: {where}. {THRESHOLDS}",
            "## The answer\n\n" + "\n".join(answers),
        ]
    )


def answer(policy: Policy) -> str:
    """One paragraph: the recommended setting, or that there is none."""
    summary = policy.judged
    rsd = [group for group in summary.over_all if summary.settings[group.mode].get("mode") == "rsd"]
    if not rsd:
        return "no setting of RSD was run."
    verdicts = {group.mode: judge(group, summary) for group in rsd}
    paying = [group for group in rsd if verdicts[group.mode].pays]
    best = recommend(summary)
    kinds = Counter(verdict.kind for verdict in verdicts.values())
    told: dict[Kind, str] = {
        "open": "open",
        "costs success": "cost success",
        "slow": "not fast enough",
        "no pairs": "without pairs",
    }
    others = ", ".join(f"{kinds[kind]} {words}" for kind, words in told.items() if kinds[kind])
    count = f"RSD pays in {len(paying)} of {tables.plural(len(rsd), 'setting')}{f' ({others})' if others else ''}"
    if best is None:
        fastest = least(rsd, lambda group: group.ms_mean)
        return f"{count}; nothing is recommended over `{summary.baseline}`. The fastest, {sentence(fastest, summary)}"
    return f"{count}. Recommended: {sentence(best, summary)} {against_rival(policy, best)}".rstrip()


def sentence(group: Group, summary: Summary) -> str:
    """A setting against the baseline, in numbers."""
    base = summary.group(summary.baseline, group.task, group.suite)
    assert base is not None
    speed = mean_speedup(group, base)
    text = (
        f"`{group.mode}`: success {tables.fraction(group.success)} against {tables.fraction(base.success)} of "
        f"`{summary.baseline}`, {tables.number(group.passes, 2)} passes against {tables.number(base.passes, 2)}, "
        f"{tables.number(group.ms_mean, 1)} ms a chunk against {tables.number(base.ms_mean, 1)} "
        f"({tables.number(speed, 2, 'x')})"
    )
    if group.paired:
        text += f"; paired difference {tables.points(group.paired.difference)} over {group.paired.pairs} pairs"
        text += f", McNemar p = {group.paired.p_value:.2g}"
    return text + "."


def against_rival(policy: Policy, best: Group) -> str:
    """The recommended setting against the fastest of the modes that are not RSD and pay; empty where there is none."""
    summary = policy.judged
    others = [group for group in summary.over_all if summary.settings[group.mode].get("mode") != "rsd"]
    rivals = [group for group in others if judge(group, summary).pays]
    if not rivals:
        return ""
    rival = least(rivals, lambda group: group.action_ms_mean)
    test = compare(_of(policy, best.mode), _of(policy, rival.mode), rival.mode)
    speed = mean_speedup(best, rival)
    if test.difference is None or speed is None:
        return ""
    return (
        f"Against `{rival.mode}`, of the other modes that pay the fastest "
        f"({tables.number(rival.passes, 2)} passes): {tables.points(test.difference)} over {test.pairs} pairs, "
        f"p = {test.p_value:.2g}, at {speed:.2f}x its speed; {judge_rival(test, speed)}."
    )


def section(config: StudyConfig, policy: Policy) -> str:
    """One policy: conditions, tables and figures."""
    summary = policy.measured
    parts = {
        "What was run": conditions(policy.rows),
        "All settings, latency as measured": tables.markdown(overview(summary)),
        "Success by suite": tables.markdown(by_suite(summary)) if len(summary.suites) > 1 else "",
        "Where it pays": "\n".join(f"- {line}" for line in findings(policy)),
    }
    if policy.replayed:
        assert policy.times is not None
        told = ", ".join(f"{name} {ms:.2f}" for name, ms in policy.times.items())
        parts["The same passes at the other geometry"] = (
            f"Measured stages [ms]: {told}. A chunk is vision + prefill + draft (where one is) + passes x "
            "(pass + tail); one of modes parallel and regression takes what parallel was measured to take as a whole, "
            "where that is known. "
            "Percentiles vary by passes alone.\n\n" + tables.markdown(latencies(policy.replayed))
        )
    parts["Passes and kept layers by phase of the episode"] = tables.markdown(phases(summary))
    parts["Drafted codes kept in the first pass, by layer"] = tables.markdown(kept(summary))
    figures = [f"![{path.stem}]({path.relative_to(config.out.parent)})" for path in draw_figures(config, policy)]
    told_parts = [f"### {title}\n\n{text}" for title, text in parts.items() if text]
    return "\n\n".join([f"## {policy.name}", *told_parts, *figures])


def overview(summary: Summary) -> tables.Rows:
    """One row a mode over everything: success, paired difference, passes, latency, verdict."""
    return [
        {
            "mode": group.mode,
            "success": tables.fraction(group.success, group.errors),
            "95 %": tables.interval(group.success),
            "difference": tables.points(group.paired.difference) if group.paired else "",
            "McNemar p": f"{group.paired.p_value:.2g}" if group.paired else "",
            "passes": tables.number(group.passes, 2),
            "layers kept": tables.number(group.accepted_layers, 2),
        }
        | latency_cells(group, summary)
        for group in summary.over_all
    ]


def latencies(summary: Summary) -> tables.Rows:
    """One row a mode over everything: latency and verdict."""
    return [
        {"mode": group.mode, "passes": tables.number(group.passes, 2)} | latency_cells(group, summary)
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


def by_suite(summary: Summary) -> tables.Rows:
    """Success of every mode in every suite."""
    rows = []
    for mode in summary.modes:
        row = {"mode": mode}
        for suite in (*summary.suites, None):
            group = summary.group(mode, suite=suite)
            row[suite or "all"] = f"{tables.fraction(group.success, group.errors)}" if group else ""
        rows.append(row)
    return rows


def phases(summary: Summary) -> tables.Rows:
    """By phase of the episode, over everything."""
    rows = [row for row in tables.by_phase(summary) if row.get("suite", "all") == "all"]
    return [{name: cell for name, cell in row.items() if name != "suite"} for row in rows]


def kept(summary: Summary) -> tables.Rows:
    """Share of elements whose drafted code was kept, by layer."""
    return [
        {"mode": group.mode} | {f"layer {layer}": tables.percent(rate) for layer, rate in enumerate(group.kept_rates)}
        for group in summary.over_all
        if group.kept_rates
    ]


def findings(policy: Policy) -> Iterator[str]:
    """Where it pays and where not, from the numbers."""
    summary = policy.judged
    base = summary.group(summary.baseline)
    assert base is not None
    if policy.times and base.passes:
        passes = break_even(policy.times, base.passes)
        head = policy.times["vision"] + policy.times["prefill"]
        limit = (base.ms_mean or 0.0) / (head + policy.times["draft"] + policy.times["pass"] + policy.times["tail"])
        yield (
            f"Break-even: below {passes:.2f} passes RSD is faster than the {base.passes:.0f} of `{summary.baseline}`. "
            f"At one pass a chunk it would be {limit:.2f}x: vision and prefill ({head:.1f} ms) stay."
        )
    best = recommend(summary)
    if best and len(summary.suites) > 1:
        for suite in summary.suites:
            if group := summary.group(best.mode, suite=suite):
                yield f"{suite}: {judge(group, summary).text}. {sentence(group, summary)}"
    if best and len(best.phases) > 1:
        told = ", ".join(f"{name} {phase.passes:.2f}" for name, phase in best.phases.items())
        yield f"Passes of `{best.mode}` by phase: {told}."
    for group in summary.over_all:
        verdict = judge(group, summary)
        if summary.settings[group.mode].get("mode") == "rsd" and not verdict.pays:
            yield f"`{group.mode}`: {verdict.text}."


def between(policies: Sequence[Policy]) -> str:
    """The baselines, and the recommended settings, of all policies against the first one's baseline."""
    first = policies[0]
    reference = _of(first, first.measured.baseline)
    rows = []
    for policy in policies:
        best = recommend(policy.judged)
        for mode in dict.fromkeys([policy.measured.baseline, *([best.mode] if best else [])]):
            group, other = policy.measured.group(mode), _of(policy, mode)
            assert group is not None
            test = compare(other, reference, first.measured.baseline)
            is_reference = policy is first and mode == first.measured.baseline
            rows.append(
                {
                    "policy": policy.name,
                    "mode": mode,
                    "success": tables.fraction(group.success, group.errors),
                    "95 %": tables.interval(group.success),
                    "passes": tables.number(group.passes, 2),
                    "pairs": "" if is_reference else str(test.pairs),
                    "difference": "" if is_reference else tables.points(test.difference),
                    "McNemar p": "" if is_reference else f"{test.p_value:.2g}",
                }
            )
    title = f"## Between policies\n\nPaired with `{first.measured.baseline}` of {first.name}.\n\n"
    return title + tables.markdown(rows)


def draw_figures(config: StudyConfig, policy: Policy) -> list[Path]:
    """Success against passes, and against latency at the geometry of the verdicts; the PNGs."""
    folder, pngs = config.out.parent / "images", []
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("passes", draw_pareto(policy.measured, "passes")),
            ("latency", draw_pareto(policy.judged, "ms_p50" if policy.replayed is None else "ms_mean")),
        ):
            if figure is not None:
                pngs.append(save(figure, folder / f"{config.out.stem}_{slug(policy.name)}_{name}")[0])
    return pngs


def _of(policy: Policy, mode: str) -> list[EpisodeRow]:
    return [row for row in policy.rows if row.mode == mode]
