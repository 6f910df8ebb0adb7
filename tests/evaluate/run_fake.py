"""An evaluation in a process of its own, to be killed: `python -m tests.evaluate.run_fake OUT MARKS PAUSE`.

Its simulators import this file too, as the main module; so torch is imported where it is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rsd_fast.cli import guarded
from tests.evaluate.fakes import FakeSuite


def main(out: Path, marks: Path, pause: float) -> int:
    from rsd_fast.evaluate.config import EvalConfig
    from rsd_fast.evaluate.runner import open_records, run_episodes
    from tests.evaluate.conftest import fast_and_slow

    config = EvalConfig(suite="fake", trials=3, workers=2, out=out)
    suite = FakeSuite(marks, pause=pause)
    run_episodes(config, suite, list(suite.tasks), fast_and_slow(), open_records(config))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])), sys.argv, resumes=True))
