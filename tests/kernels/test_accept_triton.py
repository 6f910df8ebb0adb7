"""The Triton backend of `accept_` in Triton's interpreter, against the reference."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.interpreter import assert_passes_interpreted


def test_the_interpreted_kernel_is_the_reference():
    assert_passes_interpreted(Path(__file__).with_name("interpreted_accept.py"), least=90)
