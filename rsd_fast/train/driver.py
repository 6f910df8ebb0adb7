"""A policy that acts for stretches of a demonstration: the expert then recovers from the policy's own mistakes.

Pushes leave the hand where no policy brings it, and a policy that was trained on nothing else meets states of its own
making for which it has no answer: fingers that have just missed the rim, an object held at its edge. Here the expert
answers those (Ross et al., 2011: DAgger; in stretches, as a chunk's targets have to be one command after the other).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float

from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.observation import Observation

FIRST, QUIET = (0, 48), (32, 80)  # steps until the policy acts for the first time, and between two stretches
CHUNKS = (2, 6)  # of a stretch


@cache
def load_driver(checkpoint: str, device: str) -> RSDInferenceEngine:
    """The policy of this process; one thread, because simulators beside it have the others.

    Raises:
        FileNotFoundError, ValueError: see `RSDInferenceEngine.from_pretrained`.
    """
    torch.set_num_threads(1)
    return RSDInferenceEngine.from_pretrained(checkpoint, mode="sequential", device=device)


class Driver:
    """When the policy acts in one episode, and what it does.

    Args:
        engine: the policy.
        instruction: of the task.
        generator: of the episode.
    """

    def __init__(self, engine: RSDInferenceEngine, instruction: str, generator: np.random.Generator) -> None:
        self.engine, self.instruction, self.generator = engine, instruction, generator
        self._wait, self._chunks = self._draw(FIRST), self._draw(CHUNKS)
        self._actions: deque[Float[np.ndarray, "7"]] = deque()

    def next(self, observe: Callable[[], Observation]) -> Float[np.ndarray, "7"] | None:
        """The policy's action of this step; None where the expert acts. `observe` is called once a chunk."""
        if self._wait > 0:
            self._wait -= 1
            return None
        if not self._actions:
            if self._chunks == 0:
                self._wait, self._chunks = self._draw(QUIET) - 1, self._draw(CHUNKS)
                return None
            self._chunks -= 1
            self._actions.extend(self.engine.generate_action(observe(), self.instruction)[0])
        return self._actions.popleft()

    def _draw(self, span: tuple[int, int]) -> int:
        return int(self.generator.integers(span[0], span[1] + 1))
