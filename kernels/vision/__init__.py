"""What a vision transformer does between its matrix products: patches out of pixels, residual and norm, GELU.

`reference.py` defines what the ops mean; `triton.py` computes the same in one kernel each.
"""

from .op import add_layer_norm_, gelu_, normalized_patches

__all__ = ["add_layer_norm_", "gelu_", "normalized_patches"]
