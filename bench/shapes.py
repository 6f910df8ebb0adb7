"""The shapes that the accept op is timed at."""

from __future__ import annotations

from rsd_fast.kernels.accept import Redraft

Sizes = tuple[int, int, int, int]  # L, T, D, V
SHAPES: dict[str, Sizes] = {"L3 T8 D7 V5": (3, 8, 7, 5), "L8 T8 D16 V7": (8, 8, 16, 7)}
# What the engine proposes next with these codes: of the two only L 3, V 5 is redundant enough for the middle level.
REDRAFT: dict[str, Redraft] = {"L3 T8 D7 V5": "middle", "L8 T8 D16 V7": "main"}
