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


# ---- which GPU draws


@pytest.mark.parametrize(
    ("visible", "gpu", "devices", "chosen"),
    [
        (None, 1, [0, 1, None], "1"),
        (None, 1, [1, 0], "0"),  # EGL counts as it likes
        ("2,0", 0, [0, 1, 2, None], "2"),
        ("2, 0", 1, [None, 2, 0], "2"),
        ("GPU-8932f937,GPU-1122aabb", 0, [0, 1], None),
        ("2", 0, [None], None),  # Mesa alone
        ("0", 1, [0, 1], None),
    ],
)
def test_simulators_draw_on_the_policy_s_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpu: int, devices: list[int | None], chosen: str | None
):
    for name in (gl.DEVICE_VARIABLE, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what the choice writes is undone
        monkeypatch.delenv(name)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gl, "cuda_devices", lambda: devices if "CUDA_VISIBLE_DEVICES" not in os.environ else [])
    gl.draw_on(gpu)
    assert os.environ.get(gl.DEVICE_VARIABLE) == chosen
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == (None if chosen else visible)


def test_the_user_s_choice_of_a_device_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(gl.DEVICE_VARIABLE, "3")
    monkeypatch.setattr(gl, "cuda_devices", lambda: [0])
    gl.draw_on(0)
    assert os.environ[gl.DEVICE_VARIABLE] == "3"


def test_every_device_of_egl_is_asked_which_gpu_it_is():
    assert len(gl.cuda_devices()) == gl.egl_devices()


def test_a_simulator_s_process_draws_after_it_was_bound(tmp_path: Path):
    code = (
        "from rsd_fast.sim.vector import prepare_process\n"
        "prepare_process(0)\n"
        "from rsd_fast.sim.suites import get_suite\n"
        "suite = get_suite('robosuite')\n"
        "env = suite.make_env(suite.tasks[0], image_size=64)\n"
        "env.reset(seed=0)\n"
        "print(env.frame().std() > 5)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "True"), ended.stderr


def test_no_module_of_the_simulator_imports_mujoco_before_a_library_is_chosen():
    code = (
        "import pkgutil, sys, importlib, rsd_fast.sim as sim\n"
        "for module in pkgutil.walk_packages(sim.__path__, 'rsd_fast.sim.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'mujoco', 'robosuite', 'OpenGL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
