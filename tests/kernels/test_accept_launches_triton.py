"""Every way to launch the Triton backend of `accept_` in Triton's interpreter, against the reference."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.interpreter import assert_passes_interpreted


def test_the_interpreted_launches_are_the_reference():
    assert_passes_interpreted(Path(__file__).with_name("interpreted_accept_launches.py"), least=60)
