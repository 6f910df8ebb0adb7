"""What software and which machine a result was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rsd_fast

PACKAGES = ("torch", "numpy", "mujoco", "robosuite", "hf-libero", "libero", "gymnasium", "transformers", "triton")


def versions() -> dict[str, str]:
    """Of Python, this package and those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version(), "rsd_fast": rsd_fast.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the package's own git checkout, `-dirty` with uncommitted changes; None where it is installed."""
    folder = Path(rsd_fast.__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or not our repository to read
        return None
    return described.stdout.strip()
