"""Which GL library is chosen, and what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsd_fast.sim import gl

choose = gl.choose_gl_backend.__wrapped__  # the choice itself: what is remembered of it would outlive a test
LIBRARIES = ("libEGL.so.1", "libEGL.so", "libOSMesa.so.8", "libOSMesa.so", "libOSMesa.so.6")


@pytest.fixture(autouse=True)
def linux_without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl.sys, "platform", "linux")
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")  # so that what the choice writes is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("usable", "chosen"), [({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa"), ({"egl"}, "egl")]
)
def test_egl_comes_first(monkeypatch: pytest.MonkeyPatch, usable: set[str], chosen: str):
    monkeypatch.setattr(gl, "backend_works", usable.__contains__)
    assert choose() == chosen
    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == chosen


def test_what_the_user_asks_for_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gl, "backend_works", lambda name: True)
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert choose() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert choose() == "glfw"


@pytest.mark.parametrize(("asked", "missing"), [("", "EGL or OSMesa"), ("egl", "egl"), ("osmesa", "osmesa")])
def test_a_missing_library_is_an_error_that_names_the_packages(
    monkeypatch: pytest.MonkeyPatch, asked: str, missing: str
):
    monkeypatch.setattr(gl, "find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", asked)
    with pytest.raises(RuntimeError, match=f"no working {missing} library") as error:
        choose()
    assert f"apt-get install {gl.EGL_PACKAGES}" in str(error.value)
    assert f"apt-get install {gl.OSMESA_PACKAGES}" in str(error.value)
    assert "libegl1" in gl.EGL_PACKAGES and "libosmesa6" in gl.OSMESA_PACKAGES


def test_a_library_that_does_not_load_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "libEGL.so.1").touch()
    monkeypatch.setattr(gl, "find_library", lambda name: str(tmp_path / "libEGL.so.1"))
    assert gl.egl_devices() == 0


def test_triton_can_be_imported_after_a_picture_was_drawn():
    """Mesa's LLVM would be bound to by Triton's, and the process die of it."""
    script = (
        "from rsd_fast.sim.robosuite_suite import SUITE\n"
        "env = SUITE.make_env(SUITE.tasks[0], image_size=16)\n"
        "assert env.reset(seed=0)[0]['full_image'].any()\n"
        "import torch._dynamo, triton\n"
        "print(triton.__version__)\n"
        "assert env.frame().any()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_physics_alone_needs_neither_egl_nor_osmesa(tmp_path: Path):
    """In a process in which no GL library for drawing can be loaded: physics runs, and cameras say what is missing."""
    for name in LIBRARIES:
        (tmp_path / name).touch()  # found first, and no library
    script = (
        "from rsd_fast.sim import gl\n"
        "gl.find_library = lambda name: None\n"
        "from rsd_fast.sim.robosuite_suite import SUITE\n"
        "env = SUITE.make_env(SUITE.tasks[0], render=False)\n"
        "env.reset(seed=1)\n"
        "assert env.step(SUITE.make_expert(env).act())[4]['steps'] == 1\n"
        "try:\n"
        "    SUITE.make_env(SUITE.tasks[0])\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "apt-get install libegl1" in result.stdout
