from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from rsd_fast.train.config import CodecTraining
from rsd_fast.train.dataset import DemoData, load_data, require_image_size, split_held_out
from rsd_fast.train.load import Copier
from rsd_fast.train.read import DemoHeader, find_files, read_demo, read_headers
from tests.train.demo_files import SIZE, write_demos


def headers(count: int, file: str = "Lift_demo.hdf5") -> list[DemoHeader]:
    return [DemoHeader(Path(file), f"demo_{index}", "lift", 10, SIZE, True) for index in range(count)]


def test_split_is_deterministic_and_depends_on_the_seed():
    first = split_held_out(headers(100), 0.05, seed=0)
    assert first == split_held_out(headers(100)[::-1], 0.05, seed=0)
    assert first != split_held_out(headers(100), 0.05, seed=1)
    assert len(first) == 5


def test_split_takes_a_share_of_every_task_and_always_something():
    held = split_held_out(headers(40) + headers(3, "Stack_demo.hdf5"), 0.1, seed=0)
    assert sum(file.name == "Lift_demo.hdf5" for file, _ in held) == 4
    assert sum(file.name == "Stack_demo.hdf5" for file, _ in held) == 1


def test_one_demonstration_cannot_be_split():
    with pytest.raises(ValueError, match="expected at least 2"):
        split_held_out(headers(1), 0.5, seed=0)


def test_no_frame_is_in_both_splits(data: DemoData):
    training, held_out = data.frames(True, 4), data.frames(False, 4)
    assert not set(training.tolist()) & set(held_out.tolist())
    assert not set(data.last[training].tolist()) & set(data.last[held_out].tolist())
    assert data.counts == {"do the Lift task": (6, 2), "do the Stack task": (6, 2)}


def test_chunks_are_the_next_commands(data: DemoData):
    chunk = data.chunks(torch.tensor([0, 3]), 4)
    assert torch.equal(chunk[1], data.actions[3:7])


def test_chunks_go_on_with_the_last_command(data: DemoData):
    end = int(data.last[0])
    chunk = data.chunks(torch.tensor([end - 1]), 4)[0]
    assert torch.equal(chunk[:2], data.actions[end - 1 : end + 1])
    assert data.actions[end].any()
    assert torch.equal(chunk[2:], data.actions[end].expand(2, -1))
    assert data.actions[end, 6] != 0


def test_only_frames_with_pictures_are_drawn(tmp_path: Path):
    write_demos(tmp_path, frames=11, every=3)
    data = load_data(CodecTraining(demos=tmp_path, device="cpu", workers=1, held_out=0.25))
    assert (len(data.last), len(data.images)) == (8 * 11, 8 * 4)
    step = torch.arange(8 * 11) % 11
    usable = torch.cat([data.frames(True, 4), data.frames(False, 4)])
    assert (step[usable] % 3 == 0).all() and len(usable) == 8 * 4
    assert torch.equal(data.picture[usable.sort().values], torch.arange(8 * 4))
    # The colour of a picture says which way its own demonstration goes.
    ways = (data.images[data.picture[usable], 0, -1, 0].float() - 128) / 100
    assert torch.allclose(ways, data.actions[usable, :3].sign(), atol=0.05)


def test_frames_leave_out_chunks_that_go_on_after_a_push(data: DemoData):
    data = DemoData(**{**vars(data), "pushed": torch.zeros_like(data.pushed)})
    data.in_training = torch.ones_like(data.in_training)
    data.pushed[5] = True
    left_out = set(range(12)) - set(data.frames(True, 4).tolist())
    # From frame 2 the chunk ends with the command of step 5, which can be foreseen; what follows the push cannot.
    assert left_out == {3, 4, 5}
    assert set(range(12)) <= set(data.frames(True, 1).tolist())


def test_images_of_public_files_are_turned(tmp_path: Path):
    ours = read_demo(read_headers(write_demos(tmp_path / "ours", demos=2))[0]).images
    turned = read_demo(read_headers(write_demos(tmp_path / "libero", demos=2, upright=False))[0]).images
    assert (ours[:, :, :2] == 255).all()
    assert np.array_equal(turned, ours[:, :, ::-1, ::-1])


def test_missing_demonstrations_say_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="rsd-fast demos"):
        find_files(tmp_path)


def test_wrong_layout_and_wrong_sizes_are_refused(tmp_path: Path, data: DemoData):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_group("other")
    with pytest.raises(ValueError, match="LIBERO's layout"):
        load_data(CodecTraining(demos=tmp_path, device="cpu"))
    with pytest.raises(ValueError, match=r"32 px, expected the main model's 128.*--image-size 128"):
        require_image_size(data, 128)
    write_demos(tmp_path / "mixed", "Lift", demos=2)
    write_demos(tmp_path / "mixed", "Stack", demos=2, size=16)
    with pytest.raises(ValueError, match="several sizes"):
        load_data(CodecTraining(demos=tmp_path / "mixed", device="cpu"))


def test_nan_in_a_demonstration_is_refused(tmp_path: Path):
    path = write_demos(tmp_path, demos=2)
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][3, 0] = np.nan
    with pytest.raises(ValueError, match="demo_1 holds NaN"):
        load_data(CodecTraining(demos=path, device="cpu"))


@pytest.mark.parametrize("upright", [True, False])
def test_plain_pictures_are_read_as_compressed_ones_are(tmp_path: Path, upright: bool):
    plain = write_demos(tmp_path / "plain", demos=3, upright=upright)
    packed = tmp_path / "packed" / plain.name
    packed.parent.mkdir()
    with h5py.File(plain) as source, h5py.File(packed, "w") as file:
        source.copy("data", file)
        for demo in file["data"].values():
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                pictures = demo["obs"][camera][()]
                pictures[:, 3, 5] = np.arange(len(pictures))[:, None]  # tells frames from one another
                del demo["obs"][camera]
                demo["obs"].create_dataset(camera, data=pictures, chunks=True, compression="lzf")
        # Another camera, another picture.
        for demo in file["data"].values():
            demo["obs/eye_in_hand_rgb"][:, 7, 7] = 9
    with h5py.File(plain, "r+") as file, h5py.File(packed) as source:
        for key, demo in source["data"].items():
            for camera, pictures in demo["obs"].items():
                file["data"][key]["obs"][camera][...] = pictures[()]
    assert all(header.plain for header in read_headers(plain))
    assert not any(header.plain for header in read_headers(packed))
    loaded = [load_data(CodecTraining(demos=file, device="cpu", workers=2)) for file in (plain, packed)]
    for name in ("images", "proprio", "actions", "pushed", "last", "task", "in_training"):
        assert torch.equal(*(getattr(data, name) for data in loaded)), name
    assert not torch.equal(loaded[0].images[:, 0], loaded[0].images[:, 1])


def test_files_of_several_suites_are_read_together_and_an_instruction_is_one_task(tmp_path: Path):
    for suite, task in (("one", "Lift"), ("one", "Stack"), ("two", "Lift")):
        write_demos(tmp_path / suite, task, demos=2)
    data = load_data(CodecTraining(demos=tmp_path, device="cpu"))
    assert data.instructions == ["do the Lift task", "do the Stack task"]
    assert data.counts == {"do the Lift task": (2, 2), "do the Stack task": (1, 1)}
    assert data.task.unique_consecutive().tolist() == [0, 1, 0]


def test_pictures_cut_short_are_an_error(tmp_path: Path):
    path = write_demos(tmp_path, demos=2)
    header = read_headers(path)[1]
    assert header.plain is not None
    end = header.plain[0] + 100
    os.truncate(path, end)
    images = torch.zeros(header.frames, 2, SIZE, SIZE, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"demo_1 is cut short: \d+ bytes"):
        Copier(header.frames, images).copy(header, images)
