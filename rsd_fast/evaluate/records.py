"""Rows of results: one JSON line an episode, on disk as soon as the episode ends."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .config import EXPERT, MODES

Outcome = Literal["success", "failure", "error"]
Key = tuple[str, str, str, int, int]

ROWS_FILE = "episodes.jsonl"
PACKED_FILE = ROWS_FILE + ".xz"
HEADER_FILE = "run.json"

# What settings mean something to a mode; the others are recorded and change nothing.
_READ_OUT = ("stop", "expected_last", "temperature")
_VERIFIED = ("rule", "granularity", "theta", "keep", *_READ_OUT)
MATTERS: dict[str, tuple[str, ...]] = {
    "sequential": _READ_OUT,
    "rsd": ("draft", *_VERIFIED),
    "jacobi": _VERIFIED,
    "parallel": _READ_OUT,
    "conditioned": ("draft", *_READ_OUT),
    "regression": (),
    "draft": ("draft", *_READ_OUT),
}
_IDLE = {mode: {name for every in MATTERS.values() for name in every} - set(own) for mode, own in MATTERS.items()}


@dataclass(frozen=True)
class EpisodeRow:
    """Everything about one episode. Lists have one entry a chunk; times are milliseconds unless they say otherwise.

    Attributes:
        suite, task, instruction: what was to be done.
        mode: label of the mode, as the user wrote it.
        init_state, seed: which episode; with the task, what modes are paired by.
        outcome: an `error` says nothing about the policy.
        error: text of the error.
        steps: control steps that were executed; `cap`: how many there could have been.
        passes: of the main model.
        accepted_layers: layers kept from the draft in the first pass, a mean over the elements.
        kept_rates, match_rates: by drafted layer, the share of elements that kept the draft's code, and whose draft
            agreed with main.
        codes: digest of all codes of the episode: equal digests, equal codes.
        ms: latency of the policy call, from the observation to the actions.
        ms_stages: the same by stage.
        simulator_seconds: from a command to its answer, over the episode [s].
        settings: everything that makes rows comparable; equal in all rows of a mode.
        machine: cores, workers, threads: what latency depends on beside the settings.
        versions, commit: of the software.
        aperture, height: of the robot's hand, at every observation: distance of the fingers [m] and height [m]. One
            entry a chunk, and one more at the end of the episode. Empty in older records.
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
    kept_rates: list[list[float]]
    match_rates: list[list[float]]
    codes: str
    ms: list[float]
    ms_stages: dict[str, list[float]]
    simulator_seconds: float
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None = None
    aperture: list[float] = field(default_factory=list)
    height: list[float] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What identifies an episode of a run."""
        return (self.suite, self.task, self.mode, self.init_state, self.seed)

    @property
    def pair(self) -> tuple[str, str, int, int]:
        """What modes are paired by."""
        return (self.suite, self.task, self.init_state, self.seed)

    @property
    def device(self) -> str:
        """Where it was decoded, and in which floats; empty for the expert, which decodes nothing."""
        if self.settings.get("mode") == EXPERT:
            return ""
        return f"{self.settings.get('device')}, {self.settings.get('dtype')}"

    @property
    def policy(self) -> str:
        """What tells its policy from others: the weights, and in records that lack them the checkpoint's name."""
        return str(self.settings.get("weights") or self.settings.get("checkpoint"))

    @property
    def decoding(self) -> tuple[tuple[str, Any], ...]:
        """The mode, and those of its settings that mean something to it."""
        mode = self.settings.get("mode", "")
        return tuple((name, self.settings.get(name)) for name in ("mode", *MATTERS.get(mode, ()), "replan"))


@dataclass
class Records:
    """The rows of a results folder; of several rows for one episode (a retried error) the last counts.

    A folder to be kept may have them packed, `xz episodes.jsonl`: an eighth of the size. Adding a row unpacks them.

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
        file = records.file
        if file.exists():
            content = file.read_bytes()
        elif records.packed.exists():
            file = records.packed
            content = records._unpacked()
        else:
            return records
        *lines, _unfinished = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            records._keep(_parse(line, f"{file}:{number}"))
        return records

    @classmethod
    def merge(cls, folders: Sequence[Path]) -> Records:
        """The rows of several folders, as those of the first: shards of one evaluation, suites, replan intervals.

        Where folders differ in the replan interval, every mode says its own: `rsd:theta=1,replan=4`.

        Raises:
            FileNotFoundError: a folder without rows.
            ValueError: a line that is no row, or rows of a mode and suite with different settings, or of a mode that
                decodes in another way in another suite.
        """
        return cls.of_rows([row for folder in folders for row in read_rows(folder)], folders[0])

    @classmethod
    def of_rows(cls, rows: Sequence[EpisodeRow], folder: Path, may_differ: Collection[str] = ()) -> Records:
        """Rows of several folders as those of one; raises ValueError as `merge` does.

        Of equal weights it does not matter where they lay, and `may_differ` names settings that do not matter either.
        """
        several_replans = len({row.settings["replan"] for row in rows if "replan" in row.settings}) > 1
        merged = cls(folder)
        settings: dict[tuple[str, str], dict[str, Any]] = {}
        firsts: dict[str, EpisodeRow] = {}
        places: dict[str, str] = {}
        for row in rows:
            if several_replans:
                row = replace(row, mode=with_replan(row.mode, row.settings["replan"]))
            if "weights" in row.settings:
                place = places.setdefault(row.policy, row.settings["checkpoint"])
                if place != row.settings["checkpoint"]:
                    row = replace(row, settings={**row.settings, "checkpoint": place})
            compared = {name: value for name, value in relevant(row.settings).items() if name not in may_differ}
            if settings.setdefault((row.suite, row.mode), compared) != compared:
                merged.check_settings(row.mode, row.settings, row.suite)
            first = firsts.setdefault(row.mode, row)
            if first.decoding != row.decoding:
                raise ValueError(
                    f"got mode {row.mode!r} with {_told(first.decoding)} in {first.suite}, and with "
                    f"{_told(row.decoding)} in {row.suite}; expected one way of decoding a name: report them apart"
                )
            if not (row.outcome == "error" and merged.is_done(row.key)):
                merged._keep(row)
        return merged

    @property
    def file(self) -> Path:
        """Where the rows are, unless they are packed."""
        return self.folder / ROWS_FILE

    @property
    def packed(self) -> Path:
        """Where they are then."""
        return self.folder / PACKED_FILE

    @property
    def exist(self) -> bool:
        """Whether the folder has rows in either form."""
        return self.file.exists() or self.packed.exists()

    def add(self, row: EpisodeRow) -> None:
        """Appends and flushes to disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.packed.exists() and not self.file.exists():
            write_text(self.file, self._unpacked().decode())
            self.packed.unlink()
        self._cut_unfinished_line()
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(row)

    def is_done(self, key: Key) -> bool:
        """Whether the episode has ended in success or failure."""
        return key in self.rows and self.rows[key].outcome != "error"

    def check_settings(self, mode: str, settings: dict[str, Any], suite: str | None = None) -> None:
        """Raises ValueError if rows of `mode` (and of `suite`, if given) were made with other settings than these.

        Settings that mean nothing to the mode, as `theta` to `sequential`, do not matter.
        """
        this = relevant(settings)
        for row in self.rows.values():
            if row.mode != mode or suite not in (None, row.suite) or (then := relevant(row.settings)) == this:
                continue
            names = sorted(name for name in {*then, *this} if then.get(name) != this.get(name))
            was = ", ".join(f"{name} {then.get(name)!r}" for name in names)
            now = ", ".join(f"{name} {this.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.folder} has episodes of mode {mode!r} with {was}, now got {now}; choose another --out, or "
                "delete that folder"
            )

    def _keep(self, row: EpisodeRow) -> None:
        self.rows[row.key] = row

    def _unpacked(self) -> bytes:
        try:
            return lzma.decompress(self.packed.read_bytes())
        except lzma.LZMAError as error:
            expected = f"expected what `xz {ROWS_FILE}` writes"
            raise ValueError(f"{self.packed} cannot be unpacked ({error}); {expected}") from error

    def _cut_unfinished_line(self) -> None:
        # A row that is appended to half a line would be lost with it.
        if not self.file.exists():
            return
        content = self.file.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.file, content.rfind(b"\n") + 1)


def read_rows(folder: Path) -> list[EpisodeRow]:
    """The rows of a folder; raises FileNotFoundError without any file of them, ValueError at a line that is none."""
    records = Records.open(folder)
    if not records.exist:
        raise FileNotFoundError(f"no {records.file}: expected a folder that `rsd-fast eval --out` wrote")
    return list(records.rows.values())


def relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of decoding that mean nothing to their mode; all of them where no mode is named."""
    idle = _IDLE.get(settings.get("mode", ""), ())
    return {name: value for name, value in settings.items() if name not in idle}


def _told(settings: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings)


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


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Keeps what defines the run; `modes` among it, in the user's order (the first is the baseline)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEADER_FILE).write_text(json.dumps(header, indent=2) + "\n")


def read_header(folder: Path) -> dict[str, Any]:
    """What `write_header` wrote; empty where there is none."""
    file = folder / HEADER_FILE
    header: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return header


def mode_order(records: Records, folders: Sequence[Path] = ()) -> list[str]:
    """Modes of the rows: as the last runs listed them, then any others, in the order of `MODES`.

    `folders` are those that the rows were merged from; default that of the records.
    """
    listed = [mode for folder in folders or [records.folder] for mode in read_header(folder).get("modes", [])]
    replans = sorted({row.settings.get("replan", 0) for row in records.rows.values()}, reverse=True)
    names = [name for mode in listed for name in (mode, *(with_replan(mode, replan) for replan in replans))]
    found = {row.mode: row.settings.get("mode") for row in records.rows.values()}
    found = dict(sorted(found.items(), key=lambda item: MODES.index(item[1]) if item[1] in MODES else len(MODES)))
    return list(dict.fromkeys([*(name for name in names if name in found), *found]))


def with_replan(mode: str, replan: int) -> str:
    """A mode's label that says the replan interval: `rsd` -> `rsd:replan=4`."""
    return f"{mode}{',' if ':' in mode else ':'}replan={replan}"


def passes_trace(folder: Path, mode: str) -> list[int]:
    """The acceptance trace of a mode: passes of every chunk, episode after episode, to be replayed elsewhere.

    Args:
        folder: what was given to `rsd-fast eval` as --out.
        mode: its label there; its episodes that ended in an error are left out.

    Raises:
        FileNotFoundError: a folder without rows.
        ValueError: no such mode.
    """
    records = Records.merge([folder])
    if mode not in (modes := mode_order(records)):
        raise ValueError(f"got mode {mode!r}, expected one of {modes} of {folder}")
    rows = sorted((row for row in records.rows.values() if row.mode == mode), key=lambda row: row.pair)
    return [passes for row in rows if row.outcome != "error" for passes in row.passes]
