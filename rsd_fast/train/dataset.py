"""Demonstrations as tensors that live on the training device, whole.

The images of a thousand demonstrations are some 12 GB of bytes: they fit on one GPU. So there is no loader: frames are
drawn, gathered and augmented where they are.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.streaming import choose_device
from rsd_fast.models.tokenizer import InstructionTokenizer
from rsd_fast.progress import progress_bar
from rsd_fast.train.config import DataOptions
from rsd_fast.train.load import load_demos
from rsd_fast.train.read import DemoHeader, find_files, read_headers


@dataclass
class DemoData:
    """All frames of all demonstrations, one after the other.

    Attributes:
        images: upright, third-person camera first; of every frame, or of the first of several (`rsd-fast render
            --every`).
        picture: of each frame, its row of `images`; -1 where it has none.
        proprio: physical units.
        actions: the expert's commands.
        last: of each frame, the index of its demonstration's last frame.
        pushed: frames in which something else than the command was executed.
        task: of each frame, its row of `instructions`.
        instructions: one a task.
        in_training: frames of the training split; the others are held out.
        counts: demonstrations a task, training and held out, for the model card.
    """

    images: UInt8[Tensor, "P cameras S S 3"]
    picture: Int[Tensor, " F"]
    proprio: Float[Tensor, "F 8"]
    actions: Float[Tensor, "F A"]
    last: Int[Tensor, " F"]
    pushed: Bool[Tensor, " F"]
    task: Int[Tensor, " F"]
    instructions: list[str]
    in_training: Bool[Tensor, " F"]
    counts: dict[str, tuple[int, int]]

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.images.device

    @property
    def image_size(self) -> int:
        """S."""
        return self.images.shape[2]

    def frames(self, training: bool, chunk: int) -> Int[Tensor, " n"]:
        """The frames of a split that have pictures and whose chunks can be foreseen.

        A push at step t changes what the expert commands from t + 1 on, and no policy could know. So frames are left
        out whose chunk goes on after a push.
        """
        crossed = torch.zeros_like(self.pushed)
        index = torch.arange(len(self.last), device=self.device)
        for ahead in range(chunk - 1):
            crossed |= self.pushed[torch.minimum(index + ahead, self.last)] & (index + ahead < self.last)
        found = torch.nonzero((self.in_training == training) & (self.picture >= 0) & ~crossed)[:, 0]
        if len(found) == 0:
            split = "training" if training else "held-out"
            raise ValueError(f"got no usable {split} frames in {len(self.last)}; make more demonstrations")
        return found

    def chunks(self, frames: Int[Tensor, " b"], chunk: int) -> Float[Tensor, "b chunk A"]:
        """The next `chunk` commands from each frame on; beyond the end of a demonstration its last one goes on.

        It is the command that reached the goal, as a rule in the middle of a motion. With no motion instead, a policy
        that has not quite reached it learns to stop there, and what it sees then never changes.
        """
        index = frames[:, None] + torch.arange(chunk, device=frames.device)
        return self.actions[torch.minimum(index, self.last[frames][:, None])]

    def inputs(
        self, frames: Int[Tensor, " b"], tokens: tuple[Int[Tensor, "tasks N"], Bool[Tensor, "tasks N"]]
    ) -> PolicyInputs:
        """The observations of some frames; `tokens` come from `tokenize`."""
        task = self.task[frames]
        return PolicyInputs(self.images[self.picture[frames]], self.proprio[frames], tokens[0][task], tokens[1][task])

    def tokenize(
        self, tokenizer: InstructionTokenizer
    ) -> tuple[Int[Tensor, "tasks N"], Bool[Tensor, "tasks N"]]:
        """Tokens and mask of every task's instruction."""
        tokens, mask = tokenizer(self.instructions)
        return tokens.to(self.device), mask.to(self.device)

    def held_out_sample(self, count: int, chunk: int) -> Int[Tensor, " n"]:
        """At most `count` held-out frames, evenly spread, always the same."""
        frames = self.frames(False, chunk)
        if len(frames) <= count:
            return frames
        return frames[torch.linspace(0, len(frames) - 1, count, device=frames.device).long()]


def split_held_out(headers: list[DemoHeader], share: float, seed: int) -> set[tuple[Path, str]]:
    """Which demonstrations are held out: of each file the share with the smallest hash of seed, file name and key.

    Raises:
        ValueError: a file has fewer than two demonstrations, which cannot be split.
    """
    by_file: dict[Path, list[DemoHeader]] = defaultdict(list)
    for header in headers:
        by_file[header.file].append(header)
    held: set[tuple[Path, str]] = set()
    for file, members in by_file.items():
        if len(members) < 2:
            raise ValueError(
                f"got {len(members)} demonstrations in {file}, expected at least 2: one to train on, one held out; "
                "make more with `rsd-fast demos --episodes`"
            )
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        ranked = sorted(members, key=lambda header: _hash(seed, file.name, header.key))
        held |= {(file, header.key) for header in ranked[:count]}
    return held


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(":".join(map(str, parts)).encode()).digest()


def load_data(config: DataOptions) -> DemoData:
    """Reads every demonstration onto the device.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file cannot be used; the message says why and what to do.
        RuntimeError: a GPU is asked for and there is none.
    """
    headers = [header for file in find_files(config.demos) for header in read_headers(file)]
    held_out = split_held_out(headers, config.held_out, config.seed)
    size = _one_size(headers)
    device = choose_device(config.device)
    starts = list(accumulate((header.frames for header in headers), initial=0))
    pictures = sum(header.pictures for header in headers)
    images = torch.zeros(pictures, 2, size, size, 3, dtype=torch.uint8, device=device)
    begin = time.monotonic()
    with progress_bar("reading demonstrations", len(headers)) as advance:
        proprio, actions, pushed = load_demos(headers, images, config.workers, advance)
    seconds = time.monotonic() - begin
    instructions = list(dict.fromkeys(header.instruction for header in headers))
    training = [(header.file, header.key) not in held_out for header in headers]
    frames = torch.tensor([header.frames for header in headers])

    def per_frame(values: list[int] | list[bool]) -> Tensor:
        return torch.repeat_interleave(torch.tensor(values), frames).to(device)

    data = DemoData(
        images=images,
        picture=_pictures(headers).to(device),
        proprio=proprio.to(device),
        actions=actions.to(device),
        last=per_frame([end - 1 for end in starts[1:]]),
        pushed=pushed.to(device),
        task=per_frame([instructions.index(header.instruction) for header in headers]),
        instructions=instructions,
        in_training=per_frame(training),
        counts=_counts(headers, training),
    )
    gigabytes = images.nbytes / 1e9
    print(
        f"{len(headers)} demonstrations of {len(instructions)} instructions, {starts[-1]} frames, {pictures} drawn "
        f"at {size} px, on {device}: {gigabytes:.1f} GB in {seconds:.1f} s ({gigabytes / seconds:.1f} GB/s)",
        file=sys.stderr,
    )
    return data


def require_image_size(data: DemoData, expected: int) -> None:
    """Raises ValueError if the demonstrations' images are not of the main model's size."""
    if data.image_size != expected:
        raise ValueError(
            f"got demonstrations with images of {data.image_size} px, expected the main model's {expected}; "
            f"make them with `rsd-fast demos --image-size {expected}` or choose another --preset"
        )


def _pictures(headers: list[DemoHeader]) -> Int[Tensor, " F"]:
    """Each frame's row among all pictures, -1 where it has none."""
    rows, before = [], 0
    for header in headers:
        step = torch.arange(header.frames)
        rows.append(torch.where(step % header.every == 0, before + step // header.every, -1))
        before += header.pictures
    return torch.cat(rows)


def _one_size(headers: list[DemoHeader]) -> int:
    sizes = {header.image_size: header.file for header in headers}
    if len(sizes) > 1:
        found = ", ".join(f"{size} px in {file}" for size, file in sorted(sizes.items()))
        raise ValueError(f"got images of several sizes ({found}), expected one; train on files of one size")
    return next(iter(sizes))


def _counts(headers: list[DemoHeader], training: list[bool]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for header, trained in zip(headers, training, strict=True):
        seen, held = counts.get(header.instruction, (0, 0))
        counts[header.instruction] = (seen + trained, held + (not trained))
    return counts
