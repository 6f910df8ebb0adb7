"""What the study says in words, from its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from . import study_tables, tables
from .intervals import PairedTest, together
from .statistics import Group, Summary, compare, passes_interval
from .study_data import Policy
from .verdict import (
    TARGET_LOSS,
    TARGET_PASSES,
    Kind,
    Stand,
    break_even,
    drafted,
    judge,
    judge_rival,
    judge_target,
    least,
    mean_speedup,
)

WHAT = {
    "sequential": "sequential",
    "jacobi": "no draft model",
    "parallel": "parallel head",
    "regression": "L1 regression",
    "conditioned": "draft refined, not verified",
    "draft": "the draft alone",
    "rsd": "RSD",
    "expert": "scripted, sees the simulator's state",
}
READING = (
    "Modes may cover different episodes: `success` is over all of a mode, and compares with that of another only if "
    "the numbers of episodes agree. `pairs`, and the successes `here` and of the baseline `there`, are over the "
    "episodes that both have; the difference is theirs, with Newcombe's interval. `passes` is a mean over chunks, then "
    "over those of successful episodes, and by phase: an episode that fails runs to its cap, so failures weigh more in "
    "the first, and a robot that has got stuck is easy to draft for. `layer N`: elements whose drafted code of the "
    "layer was kept in the first pass."
)


def answer(policy: Policy) -> str:
    """The recommended setting, or that there is none; then, a line a clock, what it pays against."""
    summary = policy.judged
    rsd = drafted(summary)
    if not rsd:
        return "no setting of RSD was run."
    verdicts = {group.mode: judge(group, summary) for group in rsd}
    paying = [group for group in rsd if verdicts[group.mode].pays]
    best = policy.recommended
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
        text = f"{count}; nothing is recommended over `{summary.baseline}`. The fastest, {sentence(fastest, summary)}"
    else:
        text = f"{count}. Recommended: {sentence(best, summary)}"
    return "\n  - ".join([text, *against_rivals(policy)])


def sentence(group: Group, summary: Summary) -> str:
    """A setting against the baseline, in numbers."""
    base = summary.group(summary.baseline, group.task, group.suite)
    assert base is not None
    success = (
        f"success {tables.fraction(group.success)} against {tables.fraction(base.success)} of `{summary.baseline}`"
    )
    if test := group.paired if group.paired and group.paired.pairs else None:
        success = (
            f"success {test.both + test.gained}/{test.pairs} against {test.both + test.lost}/{test.pairs} of "
            f"`{summary.baseline}`, paired: {tables.points(test.difference)} ({tables.span(test)}, McNemar "
            f"p = {test.p_value:.2g})"
        )
    text = f"`{group.mode}`: {success}; {tables.number(group.passes, 2)} passes against {tables.number(base.passes, 2)}"
    if (speed := mean_speedup(group, base)) is not None:
        text += (
            f", {tables.number(group.ms_mean, 1)} ms a chunk against {tables.number(base.ms_mean, 1)} ({speed:.2f}x)"
        )
    return f"{text}."


def target(policy: Policy) -> str:
    """Whether the setting loses and costs as little as it should; empty without a setting or pairs."""
    setting, summary = policy.setting, policy.judged
    if setting is None or setting.paired is None or setting.paired.difference is None or setting.passes is None:
        return ""
    test, base = setting.paired, summary.group(summary.baseline)
    assert base is not None
    success, passes = judge_target(test, setting.passes)
    between = passes_interval(policy.of(setting.mode))
    span = f" ({between[0]:.2f} to {between[1]:.2f})" if between else ""
    place = summary.suites[0] if len(summary.suites) == 1 else f"{len(summary.suites)} suites"
    why = "the setting asked for" if policy.chosen else "recommended above"
    if not policy.chosen and policy.recommended is None:
        why = "the setting of RSD with the best paired difference: none is recommended"
    lines = [
        f"The target is a paired loss of at most {100 * TARGET_LOSS:g} point against `{summary.baseline}` over all "
        f"suites, and at most {TARGET_PASSES:g} passes of 3 in the mean. `{setting.mode}` ({why}), over {place}:",
        f"- success: {tables.points(test.difference)}, 95 % {tables.span(test)}, McNemar p = {test.p_value:.2g}, "
        f"{tables.plural(test.pairs, 'pair')}: **{success}**;\n"
        f"- passes: {setting.passes:.2f}{span} of {tables.number(base.passes, 0)}, "
        f"{tables.number(setting.passes_won, 2)} in successful episodes: **{passes}**.",
    ]
    meeting = [f"`{group.mode}`" for group in drafted(summary) if _meets(group)]
    if len(drafted(summary)) > 1:
        lines.append(f"By the estimates, both parts are met by: {', '.join(meeting) or 'no setting'}.")
    if not policy.chosen and len(drafted(summary)) > 1:
        lines.append(
            "The setting was chosen on these episodes, among "
            f"{len(drafted(summary))}: on fresh ones a little less is to be expected."
        )
    lines.append(tables.markdown([_target_row(policy, suite) for suite in _places(summary)]))
    lines += _by_device(policy, setting.mode)
    return "\n\n".join(lines)


def _by_device(policy: Policy, mode: str) -> list[str]:
    """A mode's pairs with the baseline on each device and on all of them; nothing where one device has all."""
    tests, rows = [], []
    for device, own in policy.by_device.items():
        group = own.group(mode)
        if group and group.paired and group.paired.pairs:
            tests.append(group.paired)
            rows.append({"device": device} | _paired_cells(mode, own.baseline, group.paired, group.passes))
    if len(tests) < 2:
        return []
    every = together(tests)
    rows.append({"device": "together"} | _paired_cells(mode, every.baseline, every, None))
    told = "An episode that several devices have played is one pair above, and one of each here:"
    return [told, tables.markdown(rows)]


def _meets(group: Group) -> bool:
    if group.paired is None or group.paired.difference is None or group.passes is None:
        return False
    return all(told.startswith("met") for told in judge_target(group.paired, group.passes))


def _target_row(policy: Policy, suite: str | None) -> dict[str, str]:
    summary, setting = policy.judged, policy.setting
    group = setting and summary.group(setting.mode, suite=suite)
    row = {"suite": suite or "all"}
    if group is None or group.paired is None:
        return row | {"pairs": "0"}
    return row | _paired_cells(group.mode, summary.baseline, group.paired, group.passes)


def _paired_cells(mode: str, baseline: str, test: PairedTest, passes: float | None) -> dict[str, str]:
    return {
        "pairs": str(test.pairs),
        mode: str(test.both + test.gained),
        baseline: str(test.both + test.lost),
        "difference": tables.points(test.difference),
        "difference, 95 %": tables.span(test),
        "McNemar p": f"{test.p_value:.2g}" if test.pairs else "",
        "passes": tables.number(passes, 2),
    }


def rivals(policy: Policy) -> str:
    """The setting against every mode that is not RSD, paired; empty where there is none."""
    setting, summary = policy.setting, policy.judged
    if setting is None:
        return ""
    rows = []
    for rival, test in _rivals(policy, setting):
        own = {suite: _test(policy, setting.mode, rival.mode, suite) for suite in summary.suites}
        speed = mean_speedup(setting, rival)
        row = {
            "against": rival.mode,
            "which is": what(summary, rival.mode),
            "pairs": str(test.pairs),
            "RSD": str(test.both + test.gained) if test.pairs else "",
            "it": str(test.both + test.lost) if test.pairs else "",
            "difference": tables.points(test.difference),
            "difference, 95 %": tables.span(test),
            "McNemar p": f"{test.p_value:.2g}" if test.pairs else "",
        }
        if len(own) > 1:
            row |= {suite: tables.points(other.difference).removesuffix(" points") for suite, other in own.items()}
        row |= {"its passes": tables.number(rival.passes, 2), "RSD's speed": tables.number(speed, 2, "x")}
        if policy.replayed:
            for device, measured in policy.by_device.items():
                row[f"measured, {device}"] = tables.number(_speed(measured, setting.mode, rival.mode), 2, "x")
        rows.append(row | {"verdict": _stand(test, speed)})
    if not rows:
        return ""
    where = "at the other geometry" if policy.replayed else "as measured"
    lines = [
        f"`{setting.mode}` against each, success over the pairs that both have (by suite: the difference in points), "
        f"speed by the mean latency {where}."
    ]
    return "\n\n".join([*lines, tables.markdown(rows, ("which is",))])


def what(summary: Summary, mode: str) -> str:
    """What a mode is, in a word or two."""
    settings = summary.settings[mode]
    stop, layers = settings.get("stop"), settings.get("layers")
    depth = f", {stop} of {layers} layers" if stop and layers and stop < layers else ""
    return WHAT.get(settings.get("mode", ""), "") + depth


def against_rivals(policy: Policy) -> Iterator[str]:
    """Where the setting pays and where not, a sentence a clock."""
    setting = policy.setting
    if setting is None:
        return
    clocks = {"At the other geometry": policy.judged} if policy.replayed else {"As measured": policy.judged}
    if policy.replayed:
        clocks |= {f"As measured on {device}": summary for device, summary in policy.by_device.items()}
    for where, summary in clocks.items():
        stands: dict[str, list[str]] = {}
        for rival, test in _rivals(policy, setting):
            stand = _stand(test, _speed(summary, setting.mode, rival.mode))
            if stand:
                stands.setdefault(stand, []).append(f"`{rival.mode}`")
        told = [f"{ORDER[stand]} {', '.join(stands[stand])}" for stand in ORDER if stand in stands]
        if told:
            yield f"{where}, `{setting.mode}` {'; '.join(told)}."


ORDER: dict[Stand, str] = {
    "pays": "pays against",
    "buys success with time": "buys success with time against",
    "open": "is undecided against",
    "loses success": "is faster but loses success against",
    "does not pay": "does not pay against",
}


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
    setting = policy.setting
    if setting and len(summary.suites) > 1:
        own = {suite: summary.group(setting.mode, suite=suite) for suite in summary.suites}
        told = "; ".join(f"{suite} {judge(group, summary).text}" for suite, group in own.items() if group)
        yield f"`{setting.mode}` by suite: {told}."
    if setting and len(setting.phases) > 1:
        told = ", ".join(f"{name} {phase.passes:.2f}" for name, phase in setting.phases.items())
        yield f"Passes of `{setting.mode}` by phase: {told}."
    for group in drafted(summary):
        yield f"`{group.mode}`: {judge(group, summary).text}."


def geometry(policy: Policy) -> str:
    """Latency at the other geometry: its stages, and every mode."""
    assert policy.times is not None and policy.replayed is not None
    told = ", ".join(f"{name} {ms:.2f}" for name, ms in policy.times.items())
    return (
        f"Measured stages [ms]: {told}. A chunk is vision + prefill + draft (where one is) + passes x (pass + tail); "
        "one of modes parallel and regression takes what parallel was measured to take as a whole, where that is "
        "known. Percentiles vary by passes alone. Success is what this policy had.\n\n"
        + tables.markdown(study_tables.latencies(policy.replayed))
    )


def latency(policy: Policy) -> str:
    """Latency as recorded, a device each, and what passes can save there at most."""
    several = len(policy.by_device) > 1
    rows = [
        row
        for device, summary in policy.by_device.items()
        for row in study_tables.latencies(summary, {"device": device} if several else None)
    ]
    lines = list(_limits(policy))
    text = "From the observation to the actions, while simulators run on the same machine."
    return "\n\n".join([text, *(["\n".join(lines)] if lines else []), tables.markdown(rows)]) if rows else ""


def _limits(policy: Policy) -> Iterator[str]:
    for device, summary in policy.by_device.items():
        batches = {row.settings.get("batch", 1) for row in policy.rows if row.device == device}
        if max(batches) > 1:
            told = " or ".join(map(str, sorted(batches)))
            yield (
                f"- {device}: up to {told} chunks were decoded in one call. All of a call wait for the one with the "
                "most passes, so these latencies understate what RSD saves a single robot."
            )
            if len(batches) > 1:
                yield f"- {device}: the calls differ in size, so latencies of two modes may not compare."
        base = summary.group(summary.baseline)
        if base and base.ms_mean and base.passes and "passes" in base.ms_stages:
            most = base.ms_mean / (base.ms_mean - base.ms_stages["passes"] * (1 - 1 / base.passes))
            inputs = base.ms_stages.get("inputs", 0.0) / base.ms_mean
            yield (
                f"- {device}: passes are {100 * base.ms_stages['passes'] / base.ms_mean:.0f} % of a chunk of "
                f"`{summary.baseline}` (pictures and their way to the policy {100 * inputs:.0f} %): one pass for all "
                f"would make it {most:.2f}x, and a draft takes its own time."
            )


def _rivals(policy: Policy, setting: Group) -> Iterator[tuple[Group, PairedTest]]:
    for group in policy.judged.over_all:
        if policy.judged.settings[group.mode].get("mode") not in ("rsd", "expert") or group.mode == (
            policy.judged.baseline
        ):
            yield group, _test(policy, setting.mode, group.mode)


def _test(policy: Policy, mode: str, other: str, suite: str | None = None) -> PairedTest:
    own, its = ([row for row in policy.of(name) if suite in (None, row.suite)] for name in (mode, other))
    return compare(own, its, other)


def _stand(test: PairedTest, speed: float | None) -> str:
    return "" if test.difference is None or speed is None else judge_rival(test, speed)


def _speed(summary: Summary, mode: str, other: str) -> float | None:
    group, rival = summary.group(mode), summary.group(other)
    return mean_speedup(group, rival) if group and rival else None


def _places(summary: Summary) -> Sequence[str | None]:
    return (*summary.suites, None) if len(summary.suites) > 1 else (None,)
