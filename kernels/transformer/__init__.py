"""The ops of a Llama layer, and of the queries that go through it, for inference.

Norms, SwiGLU, rotary embedding, attention over a cache, products for few rows. `reference.py` says what they mean;
`triton_*.py` compute the same faster; `plans.py` says with which tiles, and where cuBLAS is best.
"""

from .op import attention, code_queries, linear, linear_add_, pack_mask, rms_norm, rotary_cache_, swiglu, swiglu_linear
from .plans import AttentionTile, Plans, Tile

__all__ = [
    "AttentionTile",
    "Plans",
    "Tile",
    "attention",
    "code_queries",
    "linear",
    "linear_add_",
    "pack_mask",
    "rms_norm",
    "rotary_cache_",
    "swiglu",
    "swiglu_linear",
]
