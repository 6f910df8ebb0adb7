"""Pushes and slips that a demonstration has to recover from."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

FORCE_OPEN, FORCE_CLOSED = -2.0, 2.0  # commands are clipped to [-1, 1], so these decide whatever the expert says


class Disturbance:
    """Pushes and slips at random times, with quiet stretches between them.

    A push is a short constant offset of the command of the arm. A slip opens the fingers and then closes them, wherever
    the hand is: what it held is gone, and the fingers are shut on nothing. Without slips no demonstration shows what to
    do after a missed grasp, and a policy that misses one carries nothing to the goal.

    Noise at every step would teach a policy's chunk to answer pushes that it cannot foresee. Here the quiet
    stretches start where a push or a slip has left the hand, so they show the way back, and nothing else.

    Args:
        generator: of the episode.
        size: largest offset of a position command, 0 to leave the expert alone; turns get half of it.
        quiet: fewest and most steps between them.
        length: fewest and most steps of a push, and of each half of a slip.
        slips: share of slips.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        size: float = 0.6,
        quiet: tuple[int, int] = (16, 48),
        length: tuple[int, int] = (3, 6),
        slips: float = 0.35,
    ) -> None:
        if size < 0:
            raise ValueError(f"got disturbance size {size}, expected at least 0")
        self.slips = slips
        self.generator, self.size, self.quiet, self.length = generator, size, quiet, length
        self._offset = np.zeros(7)
        self._left = int(generator.integers(0, quiet[1]))
        self.active = False

    def next(self) -> Float[np.ndarray, "7"]:
        """The offset of this step; `active` says whether it is a push."""
        if self.size == 0:
            return self._offset
        if self._left == 0:
            self._turn_over()
        self._left -= 1
        return self._offset

    def _turn_over(self) -> None:
        if self._offset[6] == FORCE_OPEN:  # the second half of a slip
            self._offset = fingers(FORCE_CLOSED)
        elif self.active:
            self.active, self._offset = False, np.zeros(7)
        else:
            self.active = True
            # Without slips nothing is drawn for them: the pushes of a seed stay what they are.
            slips = self.slips > 0 and self.generator.uniform() < self.slips
            self._offset = fingers(FORCE_OPEN) if slips else self._draw()
        span = self.length if self.active else self.quiet
        self._left = int(self.generator.integers(span[0], span[1] + 1))

    def _draw(self) -> Float[np.ndarray, "7"]:
        move = self.generator.uniform(-self.size, self.size, 3)
        turn = self.generator.uniform(-self.size / 2, self.size / 2, 3)
        return np.concatenate([move, turn, [0.0]])


def fingers(offset: float) -> Float[np.ndarray, "7"]:
    """An offset of the gripper's command alone."""
    return np.array([0.0] * 6 + [offset])
