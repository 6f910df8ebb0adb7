"""Does a policy look? The classic silent failure is one that loads, runs fast, and never sees its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Generates(Protocol):
    """What is asked of an engine."""

    def generate_action(self, obs: Mapping[str, Any], task_description: str) -> tuple[np.ndarray, dict[str, Any]]:
        """See `rsd_fast.engine.RSDInferenceEngine.generate_action`."""
        ...


def check_sees(engine: Generates, instruction: str = "pick up the black bowl", size: int = 256) -> float:
    """Decodes one chunk before black cameras and one before white ones, all else equal.

    Args:
        engine: the policy.
        instruction: any that the policy accepts.
        size: pixels a side of the images.

    Returns:
        The largest difference between the two chunks, in the units of the action.

    Raises:
        ValueError: there is none, or an action is not finite.
    """
    chunks = [
        engine.generate_action(
            {
                "full_image": np.full((size, size, 3), shade, np.uint8),
                "wrist_image": np.full((size, size, 3), shade, np.uint8),
                "state": np.zeros(8),
            },
            instruction,
        )[0]
        for shade in (0, 255)
    ]
    if not np.isfinite(chunks).all():
        raise ValueError("the policy gives NaN or infinite actions; its weights are not those of its configuration")
    difference = float(np.abs(chunks[0] - chunks[1]).max())
    if difference == 0.0:
        raise ValueError(
            "the policy gives the same actions before black and before white images: its featurisers or its projector "
            "do not hold their weights, or its head was never trained on this model"
        )
    return difference
