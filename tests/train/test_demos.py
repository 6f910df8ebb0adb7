"""`rsd-fast demos`: resumable, independent of the number of workers, honest about failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rsd_fast.sim.robosuite_suite import SUITE, RobosuiteEnv, RobosuiteSuite, proprio
from rsd_fast.sim.suites import Task, get_suite
from rsd_fast.train import demos
from rsd_fast.train.config import DemosConfig

SIZE = 32
SEED = 34  # it and the next are pushed early


class Inline(Executor):
    """Runs at once, in this process."""

    def __init__(self, *settings: Any) -> None:
        pass

    def submit(self, function, /, *arguments, **named) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments, **named))
        return future


@pytest.fixture(scope="module", autouse=True)
def close_simulators() -> Iterator[None]:
    yield
    close_all()


class Blind(RobosuiteSuite):
    """Without cameras, which take ten times as long as the physics."""

    def make_env(self, task: Task, *, image_size: int = 128, render: bool = True) -> RobosuiteEnv:
        return super().make_env(task, image_size=image_size, render=False)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and blind."""
    monkeypatch.setattr(demos, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(demos, "get_suite", lambda name: Blind() if name == "robosuite" else get_suite(name))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, inline: None) -> list[int]:
    """The seeds of the episodes that were really played, in order."""
    seeds: list[int] = []
    play = demos.demonstrate

    def counting(env, make_expert, seed, *disturbed):
        seeds.append(seed)
        return play(env, make_expert, seed, *disturbed)

    monkeypatch.setattr(demos, "demonstrate", counting)
    return seeds


def config_in(folder: Path, **changes: Any) -> DemosConfig:
    settings = {"tasks": ("Lift",), "episodes": 2, "workers": 1, "image_size": SIZE, "push": 0.5, "seed": SEED}
    return DemosConfig(out=folder, **settings | changes)


def contents(path: Path, images: bool = True) -> dict[str, bytes]:
    """Every data set and attribute of a file."""
    found: dict[str, bytes] = {}

    def take(name: str, node: Any) -> None:
        if name.endswith("_rgb") and not images:
            return
        found.update({f"{name}@{key}": np.asarray(value).tobytes() for key, value in node.attrs.items()})
        if isinstance(node, h5py.Dataset):
            found[name] = node[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(take)
        data = file["data"].attrs
        return found | {key: str(data[key]).encode() for key in data}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations by one worker, in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demos, "ProcessPoolExecutor", Inline)
        (path,) = demos.run(config_in(tmp_path_factory.mktemp("whole")))
    close_all()
    return path


def close_all() -> None:
    for env in demos._ENVS.values():
        env.close()
    demos._ENVS.clear()


def test_two_processes_write_what_one_wrote(whole: Path, tmp_path: Path):
    (path,) = demos.run(config_in(tmp_path, workers=2))
    assert contents(path) == contents(whole)
    assert path == tmp_path / "robosuite" / "Lift_demo.hdf5"
    assert os.listdir(path.parent) == [path.name]  # nothing else is left


def test_the_past_of_a_simulator_does_not_show(whole: Path, tmp_path: Path, inline: None):
    """Another task, then more episodes than before: the first ones are the same."""
    demos.run(config_in(tmp_path, tasks=("Stack",), episodes=1))
    (path,) = demos.run(config_in(tmp_path, episodes=3))
    longer, shorter = contents(path, images=False), contents(whole, images=False)
    assert {name: value for name, value in longer.items() if name.startswith(("data/demo_0", "data/demo_1"))} == {
        name: value for name, value in shorter.items() if name.startswith("data/demo_")
    }


def test_a_stopped_run_goes_on_where_it_was(
    whole: Path, tmp_path: Path, recorded: list[int], monkeypatch: pytest.MonkeyPatch
):
    counting = demos.demonstrate

    def killed(env, make_expert, seed, *disturbed):
        if seed == SEED + 1 and not interrupted:
            interrupted.append(seed)
            raise KeyboardInterrupt
        return counting(env, make_expert, seed, *disturbed)

    interrupted: list[int] = []
    monkeypatch.setattr(demos, "demonstrate", killed)
    with pytest.raises(KeyboardInterrupt):
        demos.run(config_in(tmp_path))
    parts = tmp_path / "robosuite" / "Lift_demo.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["demo_000034.hdf5", "settings.json"]
    (path,) = demos.run(config_in(tmp_path))
    assert recorded == [SEED, SEED + 1]
    assert contents(path, images=False) == contents(whole, images=False) and not parts.exists()
    assert demos.run(config_in(tmp_path)) == [path] and len(recorded) == 2  # all is there


def test_ctrl_c_ends_a_run_at_once_and_keeps_what_is_done(tmp_path: Path):
    command = [sys.executable, "-c", "from rsd_fast.cli import main; exit(main())", "demos"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path), "--tasks", "Lift", "--episodes", "500", "--image-size", "16"],
        start_new_session=True,  # a terminal's Ctrl-C reaches the whole group
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    parts = tmp_path / "robosuite" / "Lift_demo.parts"
    try:
        deadline = time.monotonic() + 120
        while not list(parts.glob("*.hdf5")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130 and "this goes on where it was" in told
        with pytest.raises(ProcessLookupError):  # its workers are gone too
            for _ in range(100):
                os.killpg(process.pid, 0)
                time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for part in parts.glob("*.hdf5"):
        with h5py.File(part) as file:
            assert file["demo"].attrs["success"]


def test_an_error_in_one_episode_leaves_the_others_unplayed(tmp_path: Path, monkeypatch, inline: None):
    shut: list[dict[str, Any]] = []
    monkeypatch.setattr(Inline, "shutdown", lambda self, wait=True, **named: shut.append(named))
    monkeypatch.setattr(demos, "demonstrate", lambda *arguments: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        demos.run(config_in(tmp_path))
    assert {"cancel_futures": True} in shut


def test_a_failed_episode_is_replaced_by_the_next_seed_once_and_counted(
    tmp_path: Path, monkeypatch, inline: None, capsys: pytest.CaptureFixture[str]
):
    play, tried = demos.demonstrate, []

    def clumsy(env, make_expert, seed, *disturbed):
        tried.append(seed)
        return None if seed in (3, 5) else play(env, make_expert, seed, *disturbed)

    monkeypatch.setattr(demos, "demonstrate", clumsy)
    (path,) = demos.run(config_in(tmp_path, seed=3))
    assert tried == [3, 4, 5, 6]
    with h5py.File(path) as file:
        assert [file[f"data/demo_{index}"].attrs["seed"] for index in range(2)] == [4, 6]
        assert file["data"].attrs["num_demos"] == 2
    row = capsys.readouterr().out.strip().splitlines()[-1]
    assert row.replace("|", " ").split() == ["Lift", "2", "4", "50.0%"]


def test_an_expert_that_always_fails_is_an_error_that_counts(tmp_path: Path, monkeypatch, inline: None):
    monkeypatch.setattr(demos, "demonstrate", lambda *arguments: None)
    with pytest.raises(RuntimeError, match=r"Lift: the expert succeeded in 0 of 8 episodes, expected 2; .*--push"):
        demos.run(config_in(tmp_path))
    assert not (tmp_path / "robosuite" / "Lift_demo.hdf5").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 48}, r"made with .*'image_size': 32.* expected .*'image_size': 48.*; delete it or use them"),
        ({"push": 0.0}, r"made with .*'push': 0\.5.* expected .*'push': 0\.0"),
        ({"seed": 7}, r"made with .*'seed': 34.* expected .*'seed': 7"),
        ({"episodes": 3}, r"got 2 demonstrations in .*Lift_demo\.hdf5, expected 3; delete the file"),
    ],
)
def test_a_file_of_other_settings_is_neither_used_nor_overwritten(whole: Path, inline: None, change, message: str):
    before = whole.read_bytes()
    with pytest.raises(ValueError, match=message):
        demos.run(config_in(whole.parents[1], **change))
    assert whole.read_bytes() == before


def test_unfinished_episodes_of_other_settings_are_not_mixed_in(tmp_path: Path, recorded: list[int]):
    parts = tmp_path / "robosuite" / "Lift_demo.parts"
    demos.open_parts(parts, config_in(tmp_path))
    demos.open_parts(parts, config_in(tmp_path, episodes=50, workers=8))  # these change no episode
    with pytest.raises(ValueError, match=r'unfinished demonstrations in .*parts made with .*"push": 0\.5.* expected'):
        demos.run(config_in(tmp_path, push=0.0))
    assert recorded == []


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, inline: None):
    path = tmp_path / "robosuite" / "Lift_demo.hdf5"
    path.parent.mkdir()
    path.write_bytes(b"not a demonstration")
    with pytest.raises(ValueError, match=r"unreadable demonstration file .*Lift_demo\.hdf5 .*; delete it"):
        demos.run(config_in(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "other"}, "got suite 'other', expected one of"),
        ({"tasks": ("Lift", "Door")}, "got task 'Door', expected one of"),
    ],
)
def test_unknown_suites_and_tasks_are_refused_before_anything_runs(tmp_path: Path, recorded, change, message: str):
    with pytest.raises(ValueError, match=message):
        demos.run(config_in(tmp_path, **change))
    assert recorded == [] and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", 0), ("workers", 0), ("image_size", 8), ("push", -0.1), ("slips", 1.5)]
)
def test_settings_that_make_no_demonstrations_are_refused(tmp_path: Path, name: str, value: float):
    with pytest.raises(ValueError, match=f"got {name} {value}"):
        replace(config_in(tmp_path), **{name: value})


# ---- what an episode holds


def test_commands_are_the_expert_s_own_also_where_it_was_pushed(whole: Path):
    with h5py.File(whole) as file:
        for demo in file["data"].values():
            commands, executed, pushed = (demo[name][()] for name in ("actions", "executed_actions", "pushed"))
            assert np.abs(commands).max() <= 1 and np.abs(executed).max() <= 1
            assert np.array_equal(np.abs(commands - executed).max(1) > 0, pushed == 1)
            assert 0 < pushed.sum() < len(pushed)


def test_playing_the_executed_actions_again_shows_the_same_states_and_images(whole: Path):
    env = SUITE.make_env(SUITE.tasks[0], image_size=SIZE)
    with h5py.File(whole) as file:
        demo = file["data/demo_1"]
        observation, _ = env.reset(seed=int(demo.attrs["seed"]))
        for step, action in enumerate(demo["executed_actions"]):
            state = np.concatenate([demo["obs/ee_states"][step], demo["obs/gripper_states"][step]])
            assert observation["state"] == pytest.approx(state, abs=1e-4)  # actions are stored as float32
            if "full_image" in observation:
                assert np.array_equal(observation["full_image"], demo["obs/agentview_rgb"][step])
                assert np.array_equal(observation["wrist_image"], demo["obs/eye_in_hand_rgb"][step])
            _, terminated, _, _ = env.advance(action)
            observation = env.observe() if step == 0 else {"state": proprio(env.simulator)}
        assert terminated
    env.close()
