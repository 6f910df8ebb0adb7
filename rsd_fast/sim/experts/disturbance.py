"""Pushes that a demonstration has to recover from."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class Disturbance:
    """Short constant offsets of the command, at random times, with quiet stretches between them.

    Noise at every step would teach a policy's chunk to answer pushes that it cannot foresee. Here the quiet
    stretches start where a push has left the arm, so they show the way back, and nothing else.

    Args:
        generator: of the episode.
        size: largest offset of a position command, 0 to leave the expert alone; turns get half of it.
        quiet: fewest and most steps between pushes.
        length: fewest and most steps of a push.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        size: float = 0.6,
        quiet: tuple[int, int] = (16, 48),
        length: tuple[int, int] = (3, 6),
    ) -> None:
        if size < 0:
            raise ValueError(f"got disturbance size {size}, expected at least 0")
        self.generator, self.size, self.quiet, self.length = generator, size, quiet, length
        self._offset = np.zeros(7)
        self._left = int(generator.integers(0, quiet[1]))
        self.active = False

    def next(self) -> Float[np.ndarray, "7"]:
        """The offset of this step; `active` says whether it is a push."""
        if self.size == 0:
            return self._offset
        if self._left == 0:
            self.active = not self.active
            span = self.length if self.active else self.quiet
            self._left = int(self.generator.integers(span[0], span[1] + 1))
            self._offset = self._draw() if self.active else np.zeros(7)
        self._left -= 1
        return self._offset

    def _draw(self) -> Float[np.ndarray, "7"]:
        move = self.generator.uniform(-self.size, self.size, 3)
        turn = self.generator.uniform(-self.size / 2, self.size / 2, 3)
        return np.concatenate([move, turn, [0.0]])
