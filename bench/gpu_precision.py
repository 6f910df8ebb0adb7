"""Actions of a trained policy in half precision, fused and captured, against float32 in plain PyTorch.

    python -m bench.gpu_precision --checkpoint libero-nano --demos demos/libero_goal --out precision.json

Observations are held-out ones of demonstrations with pictures. With random weights the levels of a code lie so close
that rounding decides; a trained policy's do not, and the difference in what the robot does is what counts. Rows: a
decoding mode, the mean and the 99th percentile of the difference in action units, the share of equal codes, and for
scale the mean difference of both to the expert.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rsd_fast.decoding import Mode
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.observation import Observation
from rsd_fast.train.config import DataOptions
from rsd_fast.train.dataset import DemoData, load_data

MODES: tuple[Mode, ...] = ("sequential", "rsd", "parallel", "regression")


def observations(data: DemoData, frames: Int[torch.Tensor, " n"]) -> Iterator[tuple[Observation, str]]:
    """What a robot would see and be told at some frames."""
    for frame in frames.tolist():
        cameras = data.images[data.picture[frame]].numpy()
        seen = {"full_image": cameras[0], "wrist_image": cameras[1], "state": data.proprio[frame].numpy()}
        yield seen, data.instructions[int(data.task[frame])]


def act(
    engine: RSDInferenceEngine, data: DemoData, frames: Int[torch.Tensor, " n"]
) -> tuple[Float[np.ndarray, "n T A"], list[np.ndarray]]:
    """Actions and codes, one observation at a time."""
    actions, codes = [], []
    for seen, instruction in observations(data, frames):
        chunk, info = engine.generate_action(seen, instruction)
        actions.append(chunk)
        codes.append(info["codes"])
    return np.stack(actions), codes


def compare(options: argparse.Namespace, mode: Mode, data: DemoData, frames: Int[torch.Tensor, " n"]) -> dict[str, Any]:
    """A row."""
    settings = {"mode": mode, "draft": options.draft, "device": options.device}
    exact = RSDInferenceEngine.from_pretrained(
        options.checkpoint, **settings, dtype=torch.float32, runtime="eager", backend="reference"
    )
    wanted, wanted_codes = act(exact, data, frames)
    half = RSDInferenceEngine.from_pretrained(options.checkpoint, **settings, dtype=torch.bfloat16)
    got, got_codes = act(half, data, frames)
    expert = data.chunks(frames, wanted.shape[1]).numpy()
    apart = np.abs(got - wanted)
    equal = [float((a == b).mean()) for a, b in zip(got_codes, wanted_codes, strict=True) if a.size]
    return {
        "mode": mode,
        "frames": len(frames),
        "runtime": half.runtime,
        "action_mae": float(apart.mean()),
        "chunk_p99": float(np.percentile(apart.mean((1, 2)), 99)),
        "codes_equal": float(np.mean(equal)) if equal else None,
        "expert_mae": float(np.abs(wanted - expert).mean()),
        "expert_mae_half": float(np.abs(got - expert).mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="robosuite-nano")
    parser.add_argument("--demos", type=Path, required=True, help="folder of demonstrations with pictures")
    parser.add_argument("--frames", type=int, default=512, help="held-out observations, evenly spread")
    parser.add_argument("--draft", default="coarse")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; --device cpu tries the script out")
    data = load_data(DataOptions(demos=options.demos, device="cpu"))
    frames = data.held_out_sample(options.frames, 8)
    gpu = torch.cuda.get_device_name(0) if options.device == "cuda" else None
    told: dict[str, Any] = {"checkpoint": options.checkpoint, "gpu": gpu, "torch": torch.__version__, "rows": []}
    for mode in options.modes:
        row = compare(options, mode, data, frames)
        told["rows"].append(row)
        print(json.dumps(row), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
