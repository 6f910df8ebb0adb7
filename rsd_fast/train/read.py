"""Demonstration files -> arrays. Light on purpose: reader processes import nothing but h5py and numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Bool, Float, UInt8

CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
LIKE_LIBERO = "a file in LIBERO's layout, as `rsd-fast demos` writes it"
PARALLEL_FROM = 32  # demonstrations; below, starting processes takes longer than reading


@dataclass(frozen=True)
class DemoHeader:
    """What is known of a demonstration without its frames.

    Attributes:
        frames: N, its steps.
        every: pictures are those of the steps 0, `every`, 2 * `every`, ...
        plain: where in the file the bytes of each camera begin, if they lie there as they are; else None.
    """

    file: Path
    key: str
    instruction: str
    frames: int
    image_size: int
    upright: bool
    plain: tuple[int, ...] | None = None
    every: int = 1

    @property
    def pictures(self) -> int:
        """P: how many steps have pictures."""
        return -(-self.frames // self.every)


@dataclass(frozen=True)
class Demo:
    """One demonstration.

    Attributes:
        images: upright, third-person camera first.
        proprio: end-effector position (m), axis-angle (rad), gripper (m, two fingers).
        actions: the expert's commands.
        pushed: where something else than the command was executed.
    """

    images: UInt8[np.ndarray, "P cameras S S 3"]
    proprio: Float[np.ndarray, "N 8"]
    actions: Float[np.ndarray, "N A"]
    pushed: Bool[np.ndarray, " N"]


def find_files(demos: Path) -> list[Path]:
    """The demonstration files of a folder, sorted; or the one file.

    Raises:
        FileNotFoundError: there are none.
    """
    if demos.is_file():
        return [demos]
    files = sorted(demos.rglob("*.hdf5")) if demos.is_dir() else []
    files = [file for file in files if not any(parent.suffix == ".parts" for parent in file.parents)]
    if not files:
        raise FileNotFoundError(f"no demonstrations at {demos}: expected *.hdf5 files; make some with `rsd-fast demos`")
    return files


def read_headers(file: Path) -> list[DemoHeader]:
    """The demonstrations of a file, in the order of their numbers.

    Raises:
        ValueError: the file is not in LIBERO's layout.
    """
    try:
        with h5py.File(file) as source:
            data = source["data"]
            upright = data.attrs.get("image_convention") == "upright"
            every = int(data.attrs.get("picture_every", 1))
            instruction = json.loads(data.attrs["problem_info"])["language_instruction"]
            keys = sorted(data, key=lambda key: int(key.removeprefix("demo_")))
            headers = []
            for key in keys:
                obs = data[key]["obs"]
                if CAMERAS[0] not in obs and "states" in data[key]:
                    raise ValueError("it was recorded without pictures; draw them with `rsd-fast render`")
                count, size = len(obs["gripper_states"]), obs[CAMERAS[0]].shape[1]
                header = DemoHeader(file, key, _text(instruction), count, size, upright, every=every)
                headers.append(replace(header, plain=_plain(obs, header.pictures)))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"got {file}, which cannot be read ({error}); expected {LIKE_LIBERO}") from error
    return headers


def read_demo(header: DemoHeader) -> Demo:
    """The frames of one demonstration.

    Raises:
        ValueError: a part is missing, has another length, or is not finite.
    """
    with _readable(header), h5py.File(header.file) as source:
        demo = source["data"][header.key]
        images = np.stack([demo["obs"][camera][()] for camera in CAMERAS], 1)
        steps = read_steps(header, source)
    if len(images) != header.pictures:
        raise ValueError(f"{_where(header)} has {len(images)} pictures, expected {header.pictures} everywhere")
    if not header.upright:  # as the simulator gives them: turned by 180 degrees
        images = images[:, :, ::-1, ::-1]
    return Demo(np.ascontiguousarray(images), *steps)


def read_steps(
    header: DemoHeader, source: h5py.File
) -> tuple[Float[np.ndarray, "N 8"], Float[np.ndarray, "N A"], Bool[np.ndarray, " N"]]:
    """Proprio, actions and pushed of one demonstration, see `Demo`; `source` is its open file.

    Raises:
        As `read_demo`.
    """
    with _readable(header):
        demo = source["data"][header.key]
        obs = demo["obs"]
        hand = [obs["ee_states"][()]] if "ee_states" in obs else [obs["ee_pos"][()], obs["ee_ori"][()]]
        proprio = np.concatenate([*hand, obs["gripper_states"][()]], 1).astype(np.float32)
        actions = demo["actions"][()].astype(np.float32)
        pushed = demo["pushed"][()].astype(bool) if "pushed" in demo else np.zeros(len(actions), bool)
    lengths = {len(part) for part in (proprio, actions, pushed)}
    if lengths != {header.frames}:
        raise ValueError(f"{_where(header)} has parts of {sorted(lengths)} steps, expected {header.frames} everywhere")
    if not (np.isfinite(proprio).all() and np.isfinite(actions).all()):
        raise ValueError(f"{_where(header)} holds NaN or infinite numbers; remove it")
    return proprio, actions, pushed


def read_demos(headers: list[DemoHeader], workers: int) -> Iterator[Demo]:
    """All of them in order; many are decompressed by several processes."""
    if workers == 1 or len(headers) < PARALLEL_FROM:
        yield from map(read_demo, headers)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # In slices, so that no more than a few demonstrations wait to be taken.
        width = 4 * workers
        for start in range(0, len(headers), width):
            yield from pool.map(read_demo, headers[start : start + width])


def _where(header: DemoHeader) -> str:
    return f"{header.file}: {header.key}"


@contextmanager
def _readable(header: DemoHeader) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{_where(header)} cannot be read ({error}); expected {LIKE_LIBERO}") from error


def _plain(obs: h5py.Group, count: int) -> tuple[int, ...] | None:
    pictures = [obs[camera] for camera in CAMERAS if camera in obs]
    offsets = [each.id.get_offset() for each in pictures]  # None where chunked, compressed or nowhere yet
    shape = (count, *pictures[0].shape[1:])
    same = all(each.shape == shape and each.dtype == np.uint8 for each in pictures)
    return tuple(offsets) if same and len(pictures) == len(CAMERAS) and None not in offsets else None


def _text(value: str | list[str]) -> str:
    return "".join(value).strip('"')  # some public files hold a list of characters, some quote the text
