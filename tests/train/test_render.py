"""`rsd-fast render`: what it draws is what `rsd-fast demos` draws at once; resumable; all workers busy."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rsd_fast.train import demos, render
from rsd_fast.train.config import DemosConfig, RenderConfig
from rsd_fast.train.read import find_files, read_demo, read_headers
from rsd_fast.train.render import DONE, FREE, TAKEN, Episode, take
from tests.train.demo_files import write_demos

SIZE = 32
SEED = 34


def recording(out: Path, **changes: Any) -> DemosConfig:
    return DemosConfig(out=out, tasks=("Lift",), episodes=2, workers=1, image_size=SIZE, seed=SEED, **changes)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations without pictures."""
    folder = tmp_path_factory.mktemp("blind")
    demos.run(recording(folder, render=False))
    return folder


@pytest.fixture(scope="module")
def drawn(blind: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their pictures."""
    (file,) = render.run(RenderConfig(demos=blind, out=tmp_path_factory.mktemp("drawn"), image_size=SIZE, workers=1))
    return file


def layout(path: Path) -> dict[str, Any]:
    """Shapes, types and attributes of everything in a file."""
    found: dict[str, Any] = {}

    def note(name: str, node: Any) -> None:
        found[name] = (getattr(node, "shape", None), getattr(node, "dtype", None), dict(node.attrs))

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_drawn_later_is_drawn_at_once(drawn: Path, tmp_path: Path):
    (once,) = demos.run(recording(tmp_path))
    assert drawn.relative_to(drawn.parents[1]) == once.relative_to(tmp_path)
    assert layout(drawn) == layout(once)
    for later, now in zip(map(read_demo, read_headers(drawn)), map(read_demo, read_headers(once)), strict=True):
        for name in ("proprio", "actions", "pushed"):
            assert np.array_equal(getattr(later, name), getattr(now, name))
        # States are float32: an edge that falls between two pixels may go to the other.
        assert (later.images != now.images).any(-1).mean() < 0.01
        assert np.abs(later.images.astype(int) - now.images).mean() < 0.05
    with h5py.File(drawn) as later, h5py.File(once) as now:
        for name, values in now["data/demo_1"].items():
            if name != "obs":
                assert np.array_equal(later["data/demo_1"][name], values)


def test_nothing_else_is_left_and_nothing_is_drawn_twice(blind: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch):
    assert os.listdir(drawn.parent) == [drawn.name]
    monkeypatch.setattr(render, "draw_all", None)
    assert render.run(RenderConfig(demos=blind, out=drawn.parents[1], image_size=SIZE, workers=1)) == [drawn]


def test_every_third_step(blind: Path, drawn: Path, tmp_path: Path):
    config = RenderConfig(demos=blind, out=tmp_path, image_size=SIZE, workers=1, every=3)
    (file,) = render.run(config)
    for all_steps, some in zip(map(read_demo, read_headers(drawn)), map(read_demo, read_headers(file)), strict=True):
        assert np.array_equal(some.images, all_steps.images[::3])
        assert np.array_equal(some.actions, all_steps.actions)
    with pytest.raises(ValueError, match=r"'every': 3.* expected .*; delete it or"):
        render.run(replace(config, every=1))
    (again,) = render.run(RenderConfig(demos=tmp_path, out=tmp_path / "all", image_size=SIZE, workers=1))
    assert layout(again) == layout(drawn)  # draws anew what had pictures of some steps


def test_a_stopped_run_draws_only_what_is_missing(blind: Path, drawn: Path, tmp_path: Path):
    target, _ = render.plan_target(find_files(blind)[0], RenderConfig(demos=blind, out=tmp_path, image_size=SIZE))
    render.prepare(target)
    assert find_files(blind) and not list(tmp_path.rglob("*.hdf5"))
    target.log.write_text("demo_1\n")  # of which nothing was really drawn
    (file,) = render.run(RenderConfig(demos=blind, out=tmp_path, image_size=SIZE, workers=1))
    missing, skipped = map(read_demo, read_headers(file))
    assert np.array_equal(missing.images, read_demo(read_headers(drawn)[0]).images)
    assert not skipped.images.any()
    assert os.listdir(file.parent) == [file.name]


def test_other_files_are_neither_used_nor_overwritten(blind: Path, drawn: Path, tmp_path: Path):
    before = drawn.read_bytes()
    with pytest.raises(ValueError, match=r"'image_size': 32.* expected .*'image_size': 48.*; delete it or"):
        render.run(RenderConfig(demos=blind, out=drawn.parents[1], image_size=48))
    with pytest.raises(ValueError, match="would overwrite"):
        render.run(RenderConfig(demos=drawn.parents[1], out=drawn.parents[1], image_size=48))
    assert drawn.read_bytes() == before
    with pytest.raises(ValueError, match=r"cannot be drawn .*expected a file of `rsd-fast demos`"):
        render.run(RenderConfig(demos=write_demos(tmp_path), out=tmp_path / "out"))


def test_workers_spread_over_the_tasks_and_then_help_one_another(monkeypatch: pytest.MonkeyPatch):
    context = multiprocessing.get_context("spawn")
    episodes = [Episode(task, f"demo_{index}", 10) for task in range(2) for index in range(3)]
    state = context.Array("b", [FREE, FREE, FREE, FREE, FREE, DONE])
    monkeypatch.setattr(render, "_SHARED", {"state": state, "whereabouts": context.Array("i", [-1, -1, -1])})
    # The first takes the longer task, the second the other, the third helps where more is left to each, and stays.
    assert [take(worker, episodes) for worker in (0, 1, 2, 2)] == [0, 3, 1, 2]
    assert state[:] == [TAKEN, TAKEN, TAKEN, TAKEN, FREE, DONE]
    assert [take(worker, episodes) for worker in (0, 1)] == [4, None]
