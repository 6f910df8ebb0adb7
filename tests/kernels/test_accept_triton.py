"""The Triton backend of `accept_` in Triton's interpreter, against the reference.

The interpreter is chosen when a kernel is defined, so these tests run in a process of their own:
`tests/kernels/interpreted_accept.py`, of which this module says whether it passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted_accept.py")


def test_the_interpreted_kernel_is_the_reference():
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
