"""`rsd-fast info`: what is installed, what was picked and why, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import warnings
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rsd_fast.kernels.registry import BACKENDS, pick
from rsd_fast.models.checkpoints import DEFAULT_CHECKPOINT, SHIPPED
from rsd_fast.sim.gl import OFFSCREEN, backend_works, choose_gl_backend
from rsd_fast.sim.suites import SUITES, get_suite

from .config import InfoConfig, usable_cores
from .environment import commit, versions

TOOLS = ("nvcc", "nsys", "ncu", "cmake", "ninja")

Section = dict[str, Any]


def run(config: InfoConfig) -> int:
    """Prints all sections."""
    sections = collect()
    if config.json:
        print(json.dumps(sections, indent=2))
        return 0
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title, section in sections.items():
        table.add_row(title, "", style="reverse")
        for name, value in section.items():
            table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console(highlight=False).print(table)
    return 0


def collect() -> dict[str, Section]:
    """All sections by title, JSON-able."""
    environment = {name: value for name, value in sorted(os.environ.items()) if _is_ours(name)}  # as it was found
    return {
        "software": {**versions(), "commit": commit() or "not a git checkout"},
        "machine": machine(),
        "gpu": gpus(),
        "kernels": kernels(),
        "rendering": rendering(),
        "suites": suites(),
        "checkpoints": checkpoints(),
        "environment": environment,
    }


def machine() -> Section:
    """Cores and tools."""
    tools = {name: shutil.which(name) or "not found" for name in TOOLS}
    return {"system": platform.platform(), "usable cores": usable_cores(), **tools}


def gpus() -> Section:
    """What torch sees."""
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return {"devices": f"none (torch is built {built})"}
    found: Section = {"CUDA": torch.version.cuda}
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{of.name}, {of.total_memory / 2**30:.0f} GiB, compute {of.major}.{of.minor}"
    return found


def kernels() -> Section:
    """The backend of every op on every kind of device, and why."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    found: Section = {}
    for op in BACKENDS:
        for device in devices:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that a better one is missing is part of `why`
                try:
                    found[f"{op} on {device}"] = pick(op, device).why.partition(": ")[2]
                except (ValueError, RuntimeError) as error:
                    found[f"{op} on {device}"] = f"none: {error}"
    return found


def rendering() -> Section:
    """The GL library that cameras use."""
    works = {name: "works" if backend_works(name) else "not found" for name in OFFSCREEN}
    try:
        return {"picked": choose_gl_backend(), **works}
    except RuntimeError as error:
        return {"picked": f"none: {error}", **works}


def suites() -> Section:
    """Every suite: its tasks, or what it lacks."""
    found: Section = {}
    for name in SUITES:
        try:
            found[name] = get_suite(name).status()
        except (ImportError, FileNotFoundError) as error:
            found[name] = str(error)
    return found


def checkpoints() -> Section:
    """The shipped policies and their parts."""
    found: Section = {}
    for folder in sorted(path for path in SHIPPED.glob("*") if path.is_dir()):
        parts = sorted(path.parent.name for path in folder.glob("*/model.safetensors"))
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        default = ", the default" if folder.name == DEFAULT_CHECKPOINT else ""
        found[folder.name] = f"{', '.join(parts)} ({megabytes:.0f} MB{default}, {folder})"
    return found or {"shipped": "none"}


def _is_ours(name: str) -> bool:
    return name.startswith(("RSD_FAST_", "MUJOCO_", "PYOPENGL_", "TRITON_", "CUDA_VISIBLE", "OMP_NUM_THREADS"))
