"""What the benches of rounds share: an observation, and how times are summed up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rsd_fast.decoding import Mode

MODES: tuple[Mode, ...] = ("sequential", "rsd", "jacobi", "parallel")
INSTRUCTION = "lift the red cube"


def observation(seed: int = 0, size: int = 128) -> dict[str, np.ndarray]:
    """One observation of noise; what is seen does not matter for the time of a pass, only for their number."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return {"full_image": images[0], "wrist_image": images[1], "state": generator.normal(size=8).astype(np.float32)}


def percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Microseconds."""
    p10, p50, p90, p99 = (np.percentile(np.asarray(seconds) * 1e6, (10, 50, 90, 99))).tolist()
    return {"p10_us": p10, "p50_us": p50, "p90_us": p90, "p99_us": p99, "p99_over_p50": p99 / p50 if p50 else 0.0}
