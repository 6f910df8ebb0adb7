"""From what a policy calls an action to what a simulator takes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

Gripper = Literal["simulator", "openvla"]


def simulator_actions(chunk: Float[np.ndarray, "n 7"], gripper: Gripper) -> Float[np.ndarray, "n 7"]:
    """Six deltas and a gripper command from -1 (open) to +1 (close), float32 in [-1, 1].

    Args:
        chunk: un-normalised actions of a policy.
        gripper: what the last number says. `simulator`: the command, as in demonstrations of this package. `openvla`:
            0 (close) to 1 (open), as in OpenVLA's data sets; brought to [-1, 1], made -1 or 1, and negated, as
            OpenVLA's evaluation does.
    """
    chunk = np.array(chunk, np.float32)
    if gripper == "openvla":
        chunk[:, -1] = -np.sign(2 * chunk[:, -1] - 1)
    return np.clip(chunk, -1.0, 1.0)
