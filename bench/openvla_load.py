"""What loading an OpenVLA folder takes: `python -m bench.openvla_load FOLDER --device cuda` prints JSON.

Time, and the host's memory beyond what it is once the imports are done and the device is up. Both peaks are given:

- `host_peak_growth_bytes`: of everything resident, pages of the mapped files (the page cache's) included
- `host_anonymous_peak_growth_bytes`: of the process's own memory alone, sampled every millisecond

`allowed_bytes` is one shard and 2 GB, beside weights that stay on the host (none on a GPU); `within` says whether the
larger peak keeps to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rsd_fast.models.loading import from_openvla

SLACK = 2 * 10**9
ROOT = Path(__file__).parent.parent


def host_memory() -> dict[str, int]:
    """Bytes by name of /proc/self/status: VmRSS, VmHWM, RssAnon, ... as far as the kernel has them."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


class HostPeak:
    """The largest of each of `host_memory` within a `with` block, sampled in a thread."""

    def __init__(self, period: float = 0.001) -> None:
        self.period = period
        self.before = self.peak = host_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostPeak:
        self.before = self.peak = host_memory()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def growth(self, name: str) -> int | None:
        """Of one of them, None where the kernel does not count it."""
        return self.peak[name] - self.before[name] if name in self.before else None

    def _watch(self) -> None:
        while not self._stop.wait(self.period):
            self._sample()

    def _sample(self) -> None:
        now = host_memory()
        self.peak = {name: max(value, now.get(name, 0)) for name, value in self.peak.items()}


def measure(folder: Path, device: torch.device, cold: bool = False) -> dict[str, Any]:
    """Loads once. Only the first call in a process means something: memory that was freed is used again."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; python -m bench.openvla_folder {folder} writes one")
    files = [file for file in folder.iterdir() if file.is_file()]
    shards = [file.stat().st_size for file in files if file.suffix == ".safetensors"]
    if cold:
        for file in files:
            forget(file)
    torch.zeros(1, device=device)
    synchronize(device)
    began = time.perf_counter()
    with HostPeak() as host:
        main = from_openvla(folder, device=device).main
        synchronize(device)
        seconds = time.perf_counter() - began
    weights = [(value.nbytes, value.device.type) for value in main.parameters()]
    # The kernel's own high-water mark misses no peak between two samples. Not ru_maxrss: a child inherits its parent's.
    resident = max(host.peak["VmRSS"], host.peak.get("VmHWM", 0)) - host.before["VmRSS"]
    allowed = max(shards) + SLACK + sum(size for size, where in weights if where == "cpu")
    return {
        "seconds": seconds,
        "weights_bytes": sum(size for size, _ in weights),
        "disk_bytes": sum(file.stat().st_size for file in files),
        "largest_shard_bytes": max(shards),
        "host_peak_growth_bytes": resident,
        "host_anonymous_peak_growth_bytes": host.growth("RssAnon"),
        "allowed_bytes": allowed,
        "within": resident <= allowed,
        "cold": cold,
    }


def forget(file: Path) -> None:
    """Asks the kernel to drop a file's pages, so that it is read from the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())  # pages that are not written yet cannot be dropped
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_in_fresh_process(folder: str | Path, device: torch.device | str) -> dict[str, Any]:
    """`measure` where nothing has been loaded before.

    Raises:
        RuntimeError: it failed; the message ends in what it said.
    """
    command = [sys.executable, "-m", "bench.openvla_load", str(Path(folder).resolve()), "--device", str(device)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="an OpenVLA folder, such as bench.openvla_folder writes")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache first")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.folder, torch.device(options.device), options.cold)))


if __name__ == "__main__":
    main()
