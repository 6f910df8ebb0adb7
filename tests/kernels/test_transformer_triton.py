"""The Triton kernels of a Llama layer in Triton's interpreter, against the references."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.interpreter import assert_passes_interpreted


def test_the_interpreted_kernels_are_the_references():
    assert_passes_interpreted(Path(__file__).with_name("interpreted_transformer.py"), least=90)
