"""What an install holds: `kernels/` only as `rsd_fast.kernels`, and something that runs without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "kernels", "rsd_fast")
REFERENCE_SERVES = """
import warnings
from importlib.util import find_spec
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from rsd_fast.kernels.registry import pick
    choice = pick("accept", "cpu")
assert find_spec("rsd_fast.kernels").origin.startswith({target!r}), find_spec("rsd_fast.kernels").origin
assert choice.name == "reference", choice
assert "cpu is missing (the C++ kernels were not built" in choice.why, choice.why
assert [str(w.message) for w in seen if w.category is RuntimeWarning] == [choice.why]
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A clone: nothing compiled, no weights."""
    target = tmp_path_factory.mktemp("source")
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.safetensors")
            shutil.copytree(ROOT / part, target / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, target / part)
    return target


def build(source: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build` into `target`, which is what an install copies, on a machine without CMake."""
    command = [sys.executable, "setup.py", "build", "--build-base", str(target / "tmp"), "--build-lib", str(target)]
    environment = {**os.environ, "PATH": "", **environment}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """Built by default choices where there is no CMake."""
    target = tmp_path_factory.mktemp("installed")
    done = build(source, target, RSD_FAST_BUILD="auto")
    assert done.returncode == 0, done.stderr
    assert "compiled kernels were not built, the reference serves (cmake not found)" in done.stdout + done.stderr
    return target


def test_kernels_is_no_top_level_package(installed):
    assert not (installed / "kernels").exists()
    for module in ("__init__", "registry", "accept/__init__", "accept/op", "accept/cpu/__init__", "accept/triton"):
        assert (installed / "rsd_fast" / "kernels" / f"{module}.py").is_file(), module
    top_level = {path.name for path in installed.iterdir()} - {"tmp"}
    assert top_level == {"rsd_fast"}


def test_the_sources_of_the_compiled_parts_come_along(installed):
    for name in ("accept.cpp", "numbers.h"):
        assert (installed / "rsd_fast" / "kernels" / "accept" / "cpu" / name).is_file(), name


def test_without_compiled_parts_the_reference_serves_and_says_why(installed, tmp_path):
    code = REFERENCE_SERVES.format(target=str(installed))
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("RSD_FAST_BACKEND", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_zero_builds_nothing_and_says_nothing(source, tmp_path):
    done = build(source, tmp_path, RSD_FAST_BUILD="0")
    assert done.returncode == 0, done.stderr
    assert "not built" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_one_makes_a_failed_build_an_error(source, tmp_path):
    done = build(source, tmp_path, RSD_FAST_BUILD="1")
    assert done.returncode != 0
    assert "cmake not found" in done.stderr


@pytest.mark.parametrize("value", ["yes", ""])
def test_any_other_choice_is_an_error(source, tmp_path, value):
    done = build(source, tmp_path, RSD_FAST_BUILD=value)
    assert done.returncode != 0
    assert f"RSD_FAST_BUILD: got {value!r}, expected 0, 1 or auto" in done.stderr


def test_the_type_checker_finds_the_kernels_where_the_install_puts_them():
    assert (ROOT / "typings" / "rsd_fast" / "kernels").resolve() == ROOT / "kernels"
