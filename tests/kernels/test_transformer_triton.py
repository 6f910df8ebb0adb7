"""The Triton kernels of a Llama layer in Triton's interpreter, against the references.

The interpreter is chosen when a kernel is defined, so these tests run in a process of their own:
`tests/kernels/interpreted_transformer.py`, of which this module says whether it passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted_transformer.py")


def test_the_interpreted_kernels_are_the_references():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(
        command,
        cwd=CASES.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 90 and "skipped" not in done.stdout, done.stdout
