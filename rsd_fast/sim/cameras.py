"""Offscreen pictures of a MuJoCo scene."""

from __future__ import annotations

import atexit
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

if TYPE_CHECKING:
    from .suites import Image

VISUAL_GEOMS = 1  # robosuite draws geom group 1 and keeps collision shapes in group 0


class Cameras:
    """Draws named cameras of a model; the GL context is made by the first picture.

    Args:
        size: pixels a side.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._renderer: Any = None
        self._model: Any = None

    def draw(self, model: Any, data: Any, camera: str) -> Image:
        """An upright uint8 picture [S, S, 3]; `model` and `data` are MuJoCo's own."""
        import mujoco

        if model is not self._model:  # a hard reset compiles a new model
            self.close()
            self._renderer, self._model = mujoco.Renderer(model, self.size, self.size, max_geom=1000), model
            _OPEN.add(self)
            _close_before_the_display()
            self._visual = mujoco.MjvOption()
            self._visual.geomgroup[:] = 0
            self._visual.geomgroup[VISUAL_GEOMS] = 1
        self._renderer.update_scene(data, camera, self._visual)
        return np.array(self._renderer.render())

    def close(self) -> None:
        """Frees the GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = self._model = None
        _OPEN.discard(self)


_OPEN: WeakSet[Cameras] = WeakSet()


@cache
def _close_before_the_display() -> None:
    """Arranges that cameras which are still open at the interpreter's exit are closed while GL is up.

    MuJoCo ends the EGL display in an exit handler that its first context registers. Handlers run last in, first out,
    so this one, registered right after, runs before.
    """
    atexit.register(_close_all)


def _close_all() -> None:
    for cameras in list(_OPEN):
        cameras.close()
