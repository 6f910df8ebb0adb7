"""`rsd-fast study`: from records of several settings, suites and policies to one page that says where RSD pays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from . import codecs, study_tables, study_text, tables
from .config import StudyConfig
from .films import slug
from .pareto import draw_pareto
from .plots import STYLE, save
from .records import write_text
from .report import conditions, notes
from .study_data import Policy, read_policies
from .verdict import THRESHOLDS, drafted


def run(config: StudyConfig) -> int:
    """Writes the page and its figures. Returns the exit status.

    Raises:
        FileNotFoundError: a folder without rows, or no such JSON of stages or codecs.
        ValueError: rows that do not belong together, an unknown baseline or setting, latencies of several devices
            without stages, a time that is missing, or a file that holds no codecs.
    """
    policies = read_policies(config)
    if config.setting and not any(policy.chosen for policy in policies):
        found = sorted({group.mode for policy in policies for group in drafted(policy.measured)})
        raise ValueError(f"got setting {config.setting!r}, expected one of {found}")
    parts = [front(config, policies), *(section(config, policy) for policy in policies)]
    if len(policies) > 1:
        parts.append(study_tables.between(policies))
    if config.codecs is not None:
        parts.append(f"## What the codec teaches\n\n{codecs.text(config.codecs)}")
    write_text(config.out, "\n\n".join(parts) + "\n")
    print(config.out)
    return 0


# ---- the page


def front(config: StudyConfig, policies: Sequence[Policy]) -> str:
    """Title, what every report has to say, and the answer."""
    said = dict.fromkeys(note for policy in policies for note in (*notes(policy.rows), *policy.missing))
    where = f"replayed at the geometry of `{config.stages.name}`" if config.stages else "as measured"
    answers = [f"- **{policy.name}**: {study_text.answer(policy)}" for policy in policies]
    return "\n\n".join(
        [
            "# Where residual speculative decoding pays",
            *(f"**{note}**" for note in said),
            f"Made from records by `rsd-fast study`. Latencies in the verdicts: {where}. {THRESHOLDS}",
            "## The answer\n\n" + "\n".join(answers),
        ]
    )


def section(config: StudyConfig, policy: Policy) -> str:
    """One policy: conditions, tables and figures."""
    summary = policy.measured
    several = len(summary.suites) > 1
    parts = {
        "What was run": conditions(policy.rows),
        "All settings": f"{study_text.READING}\n\n{tables.markdown(study_tables.overview(summary))}",
        "Success by suite": tables.markdown(study_tables.by_suite(summary)) if several else "",
        "Success by task": tables.markdown(study_tables.by_task(policy)),
        "The target": study_text.target(policy),
        "RSD against every other mode": study_text.rivals(policy),
        "Where it pays": "\n".join(f"- {line}" for line in study_text.findings(policy)),
    }
    if policy.times:
        parts["Latency at the other geometry"] = study_text.geometry(policy)
    parts["Latency as measured"] = study_text.latency(policy)
    for suite in summary.suites if several else ():
        parts[suite] = tables.markdown(study_tables.overview(summary, suite))
    parts["Passes and kept layers by phase of the episode"] = tables.markdown(study_tables.phases(summary))
    figures = [f"![{path.stem}]({path.relative_to(config.out.parent)})" for path in draw_figures(config, policy)]
    told_parts = [f"### {title}\n\n{text}" for title, text in parts.items() if text]
    return "\n\n".join([f"## {policy.name}", *told_parts, *figures])


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
