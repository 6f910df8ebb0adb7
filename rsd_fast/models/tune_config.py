"""The settings of `rsd-fast tune`: a plain dataclass whose documentation is the `--help`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(kw_only=True)
class TuneConfig:
    """Measures which kernels are best for a model on this GPU, a minute or two, and keeps the answer for it.

    Without it, engines take the choices that come with the package: measured on an H200, and cuBLAS elsewhere. What is
    measured here is used by every engine from then on, on this kind of GPU. It lies in the user's cache folder
    ($XDG_CACHE_HOME/rsd_fast/tiles); deleting it there goes back to the package's.

    Example:
      rsd-fast tune openvla-7b
    """

    model: Positional[str] = "openvla-7b"
    """A preset, a policy folder, or a shipped checkpoint."""
    queries: tuple[int, ...] = (24, 64)
    """Action queries of a pass (layers times steps)."""
    batches: tuple[int, ...] = (1,)
    """Chunks decoded at once."""
    quick: bool = False
    """Fewer candidates."""
