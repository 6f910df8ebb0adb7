"""Which GL library draws the cameras on a machine without a display.

MuJoCo, PyOpenGL and robosuite each read an environment variable when they are imported, so the choice is made
before any of them is.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

EGL_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libgles2 libglib2.0-0"
OSMESA_PACKAGES = "libosmesa6 libgl1 libglib2.0-0"
OFFSCREEN = ("egl", "osmesa")
DEVICE_VARIABLE = "MUJOCO_EGL_DEVICE_ID"
EGL_CUDA_DEVICE_NV = 0x323A
UNLOADED = "glx"  # bindings that robosuite can import where there is no library, as long as nothing is drawn


@cache
def choose_gl_backend() -> str:
    """Sets `MUJOCO_GL` and `PYOPENGL_PLATFORM`; EGL first, OSMesa where EGL has no device.

    Returns:
        `egl`, `osmesa`, or what `MUJOCO_GL` said already.

    Raises:
        RuntimeError: neither is there; names the Debian packages.
    """
    if sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "native")
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted and wanted not in OFFSCREEN:
        return wanted
    usable = [name for name in ([wanted] if wanted else OFFSCREEN) if backend_works(name)]
    if not usable:
        asked = f"MUJOCO_GL={wanted}, but" if wanted else "no MUJOCO_GL, and"
        raise RuntimeError(
            f"got {asked} no working {wanted or 'EGL or OSMesa'} library, expected one to render cameras "
            f"without a display. On Debian and Ubuntu: apt-get install {EGL_PACKAGES} (EGL) "
            f"or apt-get install {OSMESA_PACKAGES} (OSMesa)"
        )
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = usable[0]
    return usable[0]


@contextmanager
def gl_for_import(render: bool) -> Iterator[None]:
    """Around the first import of robosuite, which imports GL bindings even where nothing will be drawn.

    Args:
        render: whether cameras will be; without, a machine that has neither EGL nor OSMesa will do.

    Raises:
        RuntimeError: see `choose_gl_backend`.
    """
    if render:
        load_triton_first()
    try:
        choose_gl_backend()
    except RuntimeError:
        if render:
            raise
        before = os.environ.get("MUJOCO_GL")
        os.environ["MUJOCO_GL"] = UNLOADED
        try:
            yield
        finally:
            if before is None:
                del os.environ["MUJOCO_GL"]
            else:
                os.environ["MUJOCO_GL"] = before
    else:
        yield


def load_triton_first() -> None:
    """Loads Triton, where it is installed, before anything is drawn.

    Mesa's software renderer brings its LLVM into the process for every library that is loaded later. A Triton that
    comes after it (torch.compile and transformers import one) binds to that LLVM instead of its own and crashes.
    """
    if find_spec("triton") is not None:
        import_module("triton")


def backend_works(name: str) -> bool:
    """Whether the library of `egl` or `osmesa` can be loaded here (for EGL: and has a device)."""
    return egl_devices() > 0 if name == "egl" else find_library("OSMesa") is not None


def egl_devices() -> int:
    """How many devices EGL can draw on without a display; Mesa's software renderer counts as one."""
    return len(_query_devices())


def draw_on(gpu: int) -> None:
    """Makes this process draw on a GPU, by `MUJOCO_EGL_DEVICE_ID`; before it draws or uses CUDA.

    EGL numbers its devices by itself, and `CUDA_VISIBLE_DEVICES` means nothing to it. NVIDIA's say which GPU of CUDA
    they are (EGL_NV_device_cuda), so the one that says the right number is taken. The choice stays MuJoCo's where the
    user has set the variable, where `CUDA_VISIBLE_DEVICES` has names instead of numbers, and where no device says the
    number (EGL has Mesa's software renderer only, say).

    Args:
        gpu: as torch counts, among the visible ones.
    """
    if DEVICE_VARIABLE in os.environ:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = numbered_gpu(gpu, visible)
    # Without it, CUDA counts all GPUs, whatever the driver makes of it when EGL asks; and robosuite refuses to be
    # imported where it does not hold EGL's number.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    devices = cuda_devices()
    if number is not None and number in devices:
        os.environ[DEVICE_VARIABLE] = str(devices.index(number))
    elif visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def numbered_gpu(gpu: int, visible: str | None) -> int | None:
    """CUDA's number of torch's `gpu` among all GPUs; `visible` is `CUDA_VISIBLE_DEVICES`. None where that has names."""
    if visible is None:
        return gpu
    entries = [entry.strip() for entry in visible.split(",")]
    return int(entries[gpu]) if gpu < len(entries) and entries[gpu].isdigit() else None


def cuda_devices() -> list[int | None]:
    """For every device of EGL, which GPU of CUDA it is; None for one that is no NVIDIA GPU."""
    query_attribute = _egl("eglQueryDeviceAttribEXT", ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ssize_t))
    numbers: list[int | None] = []
    for device in _query_devices():
        number = ctypes.c_ssize_t(-1)
        known = query_attribute is not None and query_attribute(device, EGL_CUDA_DEVICE_NV, ctypes.byref(number))
        numbers.append(number.value if known and number.value >= 0 else None)
    return numbers


def _query_devices() -> list[int | None]:
    query = _egl("eglQueryDevicesEXT", ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    count = ctypes.c_int(0)
    if query is None or not query(0, None, ctypes.byref(count)):
        return []
    devices = (ctypes.c_void_p * count.value)()
    return list(devices[: count.value]) if query(count.value, devices, ctypes.byref(count)) else []


def _egl(name: str, *arguments: Any) -> Any:
    """A function of EGL that returns a boolean; None where there is no EGL, or it has none of that name."""
    library = find_library("EGL")
    if library is None:
        return None
    try:
        get_address = ctypes.CDLL(library).eglGetProcAddress
    except (OSError, AttributeError):
        return None
    get_address.restype, get_address.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = get_address(name.encode())
    return ctypes.CFUNCTYPE(ctypes.c_uint, *arguments)(address) if address else None
