"""The tail of a pass as one op: argmax, compare, accept, select, dequantise, decode the actions.

`accept_` updates a `RoundState` in place from the logits of one pass. `reference.py` defines what it means;
the other backends (`cpu/`, `triton.py`) compute the same thing faster.
"""

from .op import accept_
from .state import AcceptParams, ActionDecoder, Redraft, RoundState

__all__ = ["AcceptParams", "ActionDecoder", "Redraft", "RoundState", "accept_"]
