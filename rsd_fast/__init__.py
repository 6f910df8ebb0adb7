"""Residual speculative decoding for robot policies, fast."""

__version__ = "0.1.0"
