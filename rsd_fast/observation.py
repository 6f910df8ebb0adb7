"""Observations as evaluation scripts hold them -> what the model takes, with every check at this boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rsd_fast.images import prepare_image
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.main import PROPRIO_DIMS, MainConfig
from rsd_fast.models.tokenizer import InstructionTokenizer

CAMERAS = ("full_image", "wrist_image")
Observation = Mapping[str, Any]


def build_inputs(
    observations: Sequence[Observation],
    instructions: Sequence[str],
    config: MainConfig,
    tokenizer: InstructionTokenizer,
) -> PolicyInputs:
    """Checks and stacks a batch, on the CPU.

    Args:
        observations: each with `full_image` and `wrist_image`, uint8 `[H, W, 3]`, upright, any size, and `state`,
            8 numbers: end-effector position (m), axis-angle (rad), gripper (m). Only what the model reads is asked for.
        instructions: one an observation.
        config: of the main model.
        tokenizer: of the main model.

    Raises:
        ValueError: anything that is not as above; the message says what was got and what is expected.
    """
    if isinstance(observations, Mapping) or isinstance(instructions, str):
        raise ValueError("got a single observation or instruction, expected a sequence of each")
    if len(observations) != len(instructions):
        raise ValueError(f"got {len(observations)} observations and {len(instructions)} instructions")
    if not observations:
        raise ValueError("got an empty batch, expected at least one observation")
    images, states = [], []
    for observation in observations:
        cameras = [_image(observation, name, config) for name in CAMERAS[: config.cameras]]
        images.append(torch.stack(cameras))
        states.append(_state(observation) if config.proprio else torch.zeros(PROPRIO_DIMS))
    tokens, mask = tokenizer(instructions)
    return PolicyInputs(torch.stack(images), torch.stack(states), tokens, mask)


def _image(observation: Observation, name: str, config: MainConfig) -> UInt8[Tensor, "size size 3"]:
    if name not in observation:
        raise ValueError(f"the observation has no {name!r}; it has {sorted(observation)}, expected {list(CAMERAS)}")
    image = np.asarray(observation[name])
    if image.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {image.dtype}, expected uint8 (0 to 255)")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name} has shape {image.shape}, expected (height, width, 3)")
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))  # a copy where torch could not write to it
    return prepare_image(pixels, config.vision.image_size, config.images)


def _state(observation: Observation) -> Tensor:
    if "state" not in observation:
        raise ValueError(f"the observation has no 'state'; it has {sorted(observation)}, expected it too")
    try:
        numbers = np.asarray(observation["state"])
    except ValueError as error:
        raise ValueError(f"state is not an array ({error}), expected {PROPRIO_DIMS} numbers") from error
    if numbers.dtype.kind not in "fiu":
        raise ValueError(f"state has dtype {numbers.dtype}, expected {PROPRIO_DIMS} real numbers")
    if numbers.shape != (PROPRIO_DIMS,):
        raise ValueError(
            f"state has shape {numbers.shape}, expected ({PROPRIO_DIMS},): position, axis-angle, two gripper fingers"
        )
    state = torch.tensor(numbers.tolist(), dtype=torch.float32)
    if not bool(torch.isfinite(state).all()):
        raise ValueError(f"state holds NaN or infinite values: {numbers.tolist()}, expected finite float32 numbers")
    return state
