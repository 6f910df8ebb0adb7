"""What a study is made of: policies with their rows, and statistics of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .config import StudyConfig
from .geometry import Milliseconds, read_geometry, replay
from .records import EpisodeRow, Records, mode_order, read_rows
from .report import in_order, unfinished
from .statistics import Group, Summary, summarise
from .verdict import drafted, recommend

# What may differ within a mode of a study: settings that latency depends on, and success does not; a device's are told.
OF_LATENCY = ("batch", "runtime", "backend", "batch_invariant", "notes")


@dataclass(frozen=True)
class Policy:
    """One policy's part of a study.

    Attributes:
        rows: in the order of a report, of all devices.
        missing: sentences about folders that lack episodes.
        measured: success and passes over everything; latencies as recorded, where one device has all.
        by_device: the same, a device each; latencies as recorded.
        replayed: latencies of another geometry, from `times`; None without one.
        chosen: the setting of RSD that the user asks about; None for what is recommended.
    """

    name: str
    rows: list[EpisodeRow]
    missing: list[str]
    measured: Summary
    by_device: dict[str, Summary]
    replayed: Summary | None
    times: Milliseconds | None
    chosen: str | None = None

    @property
    def judged(self) -> Summary:
        """What verdicts are about: the other geometry, where there is one."""
        return self.replayed or self.measured

    @property
    def recommended(self) -> Group | None:
        """The setting of RSD that the numbers recommend."""
        return recommend(self.judged)

    @property
    def setting(self) -> Group | None:
        """The setting of RSD that the page looks at closely: the chosen one, else the recommended, else the best."""
        rsd = drafted(self.judged)
        if self.chosen:
            return next((group for group in rsd if group.mode == self.chosen), None)
        paired = [(group.paired.difference, group.paired.pairs, group) for group in rsd if group.paired]
        known = [(difference, pairs, group) for difference, pairs, group in paired if difference is not None]
        best = max(known, key=lambda item: item[:2], default=None)
        return self.recommended or (best[2] if best else None)

    def of(self, mode: str) -> list[EpisodeRow]:
        """The rows of a mode."""
        return [row for row in self.rows if row.mode == mode]


def read_policies(config: StudyConfig) -> list[Policy]:
    """Episodes of equal weights make one policy, in the order in which their folders were given; raises as `run`."""
    if not config.folders:
        raise ValueError("got no folder, expected at least one that `rsd-fast eval --out` wrote")
    rows: dict[str, list[EpisodeRow]] = {}
    folders: dict[str, list[Path]] = {}
    missing: dict[str, list[str]] = {}
    for folder in config.folders:
        found = read_rows(folder)
        if not found:
            raise ValueError(f"got no episodes in {folder}, expected at least one")
        own = next((row.policy for row in found if row.device), "scripted expert")
        missing.setdefault(own, []).extend(unfinished(folder, found))
        for row in found:
            name = row.policy if row.device else own  # the expert's belong to the policy beside it
            rows.setdefault(name, []).append(row)
            if folder not in folders.setdefault(name, []):
                folders[name].append(folder)
    checkpoints = {name: Path(str(own[0].settings["checkpoint"])).name for name, own in rows.items()}
    names = list(checkpoints.values())
    told = {policy: name if names.count(name) == 1 else f"{name} ({policy})" for policy, name in checkpoints.items()}
    return [_policy(config, told[own], rows[own], folders[own], missing.get(own, [])) for own in checkpoints]


def _policy(config: StudyConfig, name: str, found: list[EpisodeRow], folders: list[Path], missing: list[str]) -> Policy:
    rows = merged(found, folders)
    records = Records(folders[0], {row.key: row for row in rows})
    modes = mode_order(records, folders)
    baseline = config.baseline or next((mode for mode in modes if mode.partition(":")[0] == "sequential"), modes[0])
    devices = list(dict.fromkeys(row.device for row in rows if row.device))
    if len(devices) > 1 and config.stages is None:
        raise ValueError(
            f"got episodes of {name} on {devices}, whose latencies do not compare: give --stages, whose latencies do, "
            "or make a study of each"
        )
    measured = summarise(rows, modes, baseline)
    chosen = config.setting if config.setting in [group.mode for group in drafted(measured)] else None
    by_device = (
        {devices[0]: measured}
        if len(devices) == 1
        else {device: summarise([row for row in rows if row.device == device], modes, baseline) for device in devices}
    )
    if config.stages is None:
        return Policy(name, rows, missing, measured, by_device, None, None, chosen)
    times = read_geometry(config.stages, next((layers for row in rows if (layers := row.settings.get("layers"))), None))
    replayed = summarise(replay(rows, times), modes, baseline, one_clock=True)
    return Policy(name, rows, missing, measured, by_device, replayed, times, chosen)


def merged(rows: Sequence[EpisodeRow], folders: Sequence[Path]) -> list[EpisodeRow]:
    """Rows of one policy as those of one report, in its order, each device merged by itself; raises as a merge does.

    Two names of one way of decoding (`rsd`, and all that it means spelled out) become one, the shorter.
    """
    names: dict[tuple[tuple[str, object], ...], str] = {}
    for row in rows:
        names[row.decoding] = min(names.get(row.decoding, row.mode), row.mode, key=len)
    renamed = [replace(row, mode=names[row.decoding]) for row in rows if row.device]
    renamed += [row for row in rows if not row.device]
    devices = dict.fromkeys(row.device for row in renamed)
    apart = [
        Records.of_rows([row for row in renamed if row.device == device], folders[0], OF_LATENCY) for device in devices
    ]
    ordered = [row for records in apart for row in in_order(records, folders)]
    suites = list(dict.fromkeys(row.suite for row in rows))
    return sorted(ordered, key=lambda row: suites.index(row.suite))
