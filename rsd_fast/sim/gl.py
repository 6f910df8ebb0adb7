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

EGL_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libgles2 libglib2.0-0"
OSMESA_PACKAGES = "libosmesa6 libgl1 libglib2.0-0"
OFFSCREEN = ("egl", "osmesa")
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
    library = find_library("EGL")
    if library is None:
        return 0
    try:
        get_address = ctypes.CDLL(library).eglGetProcAddress
    except (OSError, AttributeError):
        return 0
    get_address.restype, get_address.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = get_address(b"eglQueryDevicesEXT")
    if not address:
        return 0
    count = ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    return count.value if query(0, None, ctypes.byref(count)) else 0
