"""Rows of results: one JSON line an episode, on disk as soon as the episode ends."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

Outcome = Literal["success", "failure", "error"]
Key = tuple[str, str, str, int, int]

ROWS_FILE = "episodes.jsonl"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class EpisodeRow:
    """Everything about one episode.

    Attributes:
        suite, task, instruction: what was to be done.
        mode: label of the mode, as the user wrote it.
        init_state, seed: which episode; with the task, what modes are paired by.
        outcome: an `error` says nothing about the policy.
        error: text of the error.
        steps: control steps that were executed; `cap`: how many there could have been.
        passes: of the main model, one number a chunk.
        accepted_layers: layers kept from the draft in the first pass, one number a chunk.
        ms: latency of the policy call, one number a chunk [ms].
        ms_stages: mean over the chunks, by stage [ms].
        settings: everything that makes rows comparable; equal in all rows of a mode.
        versions, commit: of the software.
    """

    suite: str
    task: str
    instruction: str
    mode: str
    init_state: int
    seed: int
    outcome: Outcome
    error: str | None
    steps: int
    cap: int
    passes: list[int]
    accepted_layers: list[float]
    ms: list[float]
    ms_stages: dict[str, float]
    settings: dict[str, Any]
    versions: dict[str, str]
    commit: str | None = None

    @property
    def key(self) -> Key:
        """What identifies an episode of a run."""
        return (self.suite, self.task, self.mode, self.init_state, self.seed)

    @property
    def pair(self) -> tuple[str, str, int, int]:
        """What modes are paired by."""
        return (self.suite, self.task, self.init_state, self.seed)


@dataclass
class Records:
    """The rows of a results folder; of several rows for one episode (a retried error) the last counts.

    Usage: `records = Records.open(folder)`, then `records.add(row)`.
    """

    folder: Path
    rows: dict[Key, EpisodeRow] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Records:
        """Reads what is there. A last line that a kill cut short is dropped; nothing else is forgiven.

        Raises:
            ValueError: a line that is no row.
        """
        records = cls(folder)
        if not records.file.exists():
            return records
        *lines, _unfinished = records.file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            row = _parse(line, f"{records.file}:{number}")
            records.rows[row.key] = row
        return records

    @property
    def file(self) -> Path:
        """Where the rows are."""
        return self.folder / ROWS_FILE

    def add(self, row: EpisodeRow) -> None:
        """Appends and flushes to disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cut_unfinished_line()
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[row.key] = row

    def is_done(self, key: Key) -> bool:
        """Whether the episode has ended in success or failure."""
        return key in self.rows and self.rows[key].outcome != "error"

    def check_settings(self, mode: str, settings: dict[str, Any]) -> None:
        """Raises ValueError if rows of `mode` were made with other settings than these."""
        for row in self.rows.values():
            if row.mode != mode or row.settings == settings:
                continue
            names = sorted(name for name in {*row.settings, *settings} if row.settings.get(name) != settings.get(name))
            was = ", ".join(f"{name} {row.settings.get(name)!r}" for name in names)
            now = ", ".join(f"{name} {settings.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.folder} has episodes of mode {mode!r} with {was}, now got {now}; choose another --out"
            )

    def _cut_unfinished_line(self) -> None:
        # A row that is appended to half a line would be lost with it.
        if not self.file.exists():
            return
        content = self.file.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.file, content.rfind(b"\n") + 1)


def _parse(line: bytes, where: str) -> EpisodeRow:
    try:
        values = json.loads(line)
        row = EpisodeRow(**values)
    except (ValueError, TypeError) as error:
        names = [f.name for f in fields(EpisodeRow)]
        raise ValueError(f"{where} is no row of results ({error}); expected JSON with {names}") from error
    if row.outcome not in get_args(Outcome):
        raise ValueError(f"{where}: got outcome {row.outcome!r}, expected one of {list(get_args(Outcome))}")
    return row


def write_run(folder: Path, modes: list[str]) -> None:
    """Keeps the order of the modes (the first is the baseline) for `rsd-fast report`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(json.dumps({"modes": modes}) + "\n")


def mode_order(records: Records) -> list[str]:
    """Modes of the rows: as the last run listed them, then any others."""
    file = records.folder / RUN_FILE
    listed = json.loads(file.read_text())["modes"] if file.exists() else []
    found = list(dict.fromkeys(row.mode for row in records.rows.values()))
    return [mode for mode in listed if mode in found] + [mode for mode in found if mode not in listed]
