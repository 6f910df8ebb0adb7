"""The public LIBERO demonstration files, in their exact layout, through the reader of training."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from rsd_fast.train.config import CodecTraining
from rsd_fast.train.dataset import DemoData, load_data
from rsd_fast.train.read import read_demo, read_headers

SIZE = 16
INSTRUCTION = "put the bowl on the plate"
LENGTHS = (9, 6, 11)


def write_public(path: Path, states: int = 92, hand: bool = True) -> None:
    """As LIBERO's `create_dataset.py` writes it: names, shapes, types, attributes; `hand`: with `ee_states`."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        problem = {"domain_name": "robosuite", "problem_name": "libero_tabletop_manipulation"}
        data.attrs.update(
            env_name="Libero_Tabletop_Manipulation",
            problem_info=json.dumps({**problem, "language_instruction": [*INSTRUCTION]}),
            bddl_file_name="libero/bddl_files/libero_goal/put_the_bowl_on_the_plate.bddl",
            bddl_file_content="(define (problem LIBERO_Tabletop_Manipulation) ...)",
            env_args=json.dumps({"type": 1, "env_name": "Libero_Tabletop_Manipulation", "env_kwargs": {}}),
            macros_image_convention="opengl",
            num_demos=len(LENGTHS),
            tag="libero-v1",
            total=sum(LENGTHS),
        )
        for index, count in enumerate(LENGTHS):
            write_public_demo(data.create_group(f"demo_{index}"), index, count, states, hand)


def write_public_demo(demo: h5py.Group, index: int, count: int, states: int, hand: bool) -> None:
    rng = np.random.default_rng(index)
    demo.attrs.update(num_samples=count, init_state=rng.normal(size=states), model_file="<mujoco/>")
    position, turn, fingers = rng.normal(size=(count, 3)), rng.normal(size=(count, 3)), rng.normal(size=(count, 2))
    demo["actions"] = rng.uniform(-1, 1, (count, 7))
    demo["states"] = rng.normal(size=(count, states))
    demo["robot_states"] = rng.normal(size=(count, 9))
    demo["dones"] = demo["rewards"] = np.arange(count, dtype=np.uint8) // (count - 1)
    obs = demo.create_group("obs")
    obs["ee_pos"], obs["ee_ori"], obs["gripper_states"] = position, turn, fingers
    obs["joint_states"] = rng.normal(size=(count, 7))
    if hand:
        obs["ee_states"] = np.hstack([position, turn])
    for camera in ("agentview_rgb", "eye_in_hand_rgb"):
        obs[camera] = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("hand", [True, False])
def test_every_part_is_read_where_it_belongs(tmp_path: Path, hand: bool):
    path = tmp_path / "put_the_bowl_on_the_plate_demo.hdf5"
    write_public(path, hand=hand)
    headers = read_headers(path)
    assert [(header.frames, header.instruction, header.image_size) for header in headers] == [
        (count, INSTRUCTION, SIZE) for count in LENGTHS
    ]
    with h5py.File(path) as file:
        for header in headers:
            demo, read = file["data"][header.key], read_demo(header)
            cameras = [demo["obs"][name][()] for name in ("agentview_rgb", "eye_in_hand_rgb")]
            assert np.array_equal(read.images, np.stack(cameras, 1)[:, :, ::-1, ::-1])  # turned by 180 degrees
            parts = [demo["obs"][name][()] for name in ("ee_pos", "ee_ori", "gripper_states")]
            assert np.array_equal(read.proprio, np.hstack(parts).astype(np.float32))
            assert np.array_equal(read.actions, demo["actions"][()].astype(np.float32))
            assert not read.pushed.any()


def test_a_training_run_takes_them(tmp_path: Path):
    path = tmp_path / "put_the_bowl_on_the_plate_demo.hdf5"
    write_public(path)
    data: DemoData = load_data(CodecTraining(demos=tmp_path, device="cpu"))
    assert data.instructions == [INSTRUCTION] and data.counts == {INSTRUCTION: (2, 1)}
    assert torch.equal(data.images, torch.from_numpy(np.concatenate([read_demo(h).images for h in read_headers(path)])))
    assert data.proprio.dtype == data.actions.dtype == torch.float32
    assert len(data.frames(True, 8)) + len(data.frames(False, 8)) == sum(LENGTHS)
