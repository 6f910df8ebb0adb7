"""The shapes that the accept op is timed at: two codecs, chunks of 8 steps."""

from __future__ import annotations

from rsd_fast.codec import RFSQCodec, codec_preset
from rsd_fast.decoding import redraft_of
from rsd_fast.kernels.accept import Redraft

Sizes = tuple[int, int, int, int]  # L, T, D, V
CODECS = {"L3 T8 D7 V5": codec_preset("redundant"), "L8 T8 D16 V7": codec_preset("original")}
SHAPES: dict[str, Sizes] = {name: (own.layers, 8, own.latent_dims, own.levels) for name, own in CODECS.items()}
# What the engine proposes next with these codes: of the two only L 3, V 5 is redundant enough for the middle level.
REDRAFT: dict[str, Redraft] = {name: redraft_of(RFSQCodec(own), layered=True) for name, own in CODECS.items()}
