"""What loading costs in the host's memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd_fast.models.formats import INDEX
from tests.models.openvla_files import edit, make_networks, write_json, write_oft

SHARDS, SHARD_MB, SLACK_MB = 6, 40, 40

MEASURE = """
    import resource, sys, threading
    from pathlib import Path
    import torch
    from rsd_fast.models.loading import from_openvla

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    folder, device = sys.argv[1:]
    with torch.device("meta"):
        torch.nn.Embedding(2, 2)  # for the first such tensor torch imports 160 MB of its own code
    start, peak, stop = resident(), [0], threading.Event()

    def watch():
        while not stop.wait(0.001):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    policy = from_openvla(folder, device=device, dtype=torch.bfloat16)
    stop.set()
    watcher.join()
    weights = sum(p.nbytes for p in policy.main.parameters() if p.device.type == "cpu")
    print((max(peak[0], resident()) - start) / 2**20, weights / 2**20)
"""


def write_large(folder: Path) -> None:
    """An OpenVLA-OFT folder whose perceptrons are `SHARDS` matrices of `SHARD_MB`, a shard each."""
    rows = SHARD_MB * 2**20 // (64 * 2)
    write_oft(folder, make_networks(), dtype=torch.bfloat16, shards=1)
    edit("config.json", lambda c: c["text_config"].update(intermediate_size=rows))(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    large = [name for name in tensors if ".mlp.gate_proj" in name or ".mlp.up_proj" in name or ".mlp.down_proj" in name]
    assert len(large) == SHARDS
    weight_map = dict.fromkeys(tensors, "small.safetensors")
    for number, name in enumerate(large):
        del tensors[name]
        shape = (64, rows) if "down_proj" in name else (rows, 64)
        weight_map[name] = f"{number}.safetensors"
        save_file({name: torch.zeros(shape, dtype=torch.bfloat16)}, folder / weight_map[name])
    save_file(tensors, folder / "small.safetensors")
    write_json(folder / INDEX, {"weight_map": weight_map})


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_loading_needs_one_shard_of_memory_beside_the_model(tmp_path: Path, device: str):
    """`meta` stands in for a GPU: weights leave the host's memory as soon as they are read."""
    write_large(tmp_path / "oft")
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "oft"), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peak, weights = (float(word) for word in done.stdout.split())
    assert weights == 0 if device == "meta" else weights > SHARDS * SHARD_MB
    assert peak - weights <= SHARD_MB + SLACK_MB, f"peak {peak:.0f} MB, {weights:.0f} MB of it weights"
