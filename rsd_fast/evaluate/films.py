"""Pictures of filmed episodes on disk: a video needs those of all modes, which may come from several runs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .episodes import Film
from .records import EpisodeRow

FILMS = "films"
LONGEST_NAME = 200  # characters, without the ending; file systems take 255


def film_path(folder: Path, row: EpisodeRow) -> Path:
    """Where the pictures of an episode are, without the file ending."""
    return folder / FILMS / file_name(row, [row.mode])


def has_film(path: Path) -> bool:
    """Whether the pictures are there."""
    return path.with_name(path.name + ".npz").is_file()


def save_film(path: Path, film: Film) -> None:
    """Writes the pictures; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial.npz")
    np.savez_compressed(
        partial, frames=np.stack(film.frames), wrist=np.stack(film.wrist), chunks=np.array(film.chunks, np.int32)
    )
    os.replace(partial, path.with_name(path.name + ".npz"))


def load_film(path: Path) -> Film:
    """Reads them back."""
    with np.load(path.with_name(path.name + ".npz"), allow_pickle=False) as file:
        return Film(list(file["frames"]), list(file["wrist"]), file["chunks"].tolist())


def file_name(row: EpisodeRow, modes: Sequence[str]) -> str:
    """Says suite, task, initial state, seed and modes; a name too long for a file system ends in a digest instead."""
    name = f"{row.suite}_{row.task}_init{row.init_state:03d}_seed{row.seed}_{'_'.join(map(slug, modes))}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def slug(text: str) -> str:
    """A piece of a file name: `rsd:theta=1,rule=exact` -> `rsd-theta1-ruleexact`."""
    return re.sub(r"[^\w.]+", "-", text.replace("=", "")).strip("-")
