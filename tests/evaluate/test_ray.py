"""Evaluations on a local Ray cluster of two nodes: the same rows as here, also when a node is killed in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from rsd_fast.cli import main
from rsd_fast.evaluate import runner
from rsd_fast.evaluate.config import EvalConfig
from rsd_fast.evaluate.policies import Policies
from rsd_fast.evaluate.ray_runner import connect, on_ray
from rsd_fast.evaluate.records import Records
from rsd_fast.evaluate.runner import open_records, run_episodes
from rsd_fast.sim.ray_vector import RaySimulator, ready_actors
from rsd_fast.sim.vector import SimulatorCrash
from tests.evaluate.conftest import Run, fast_and_slow
from tests.evaluate.fakes import FakeSuite

TASKS = ("Push", "Pull")
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_timeout_ms": 2000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing, and two nodes of two CPUs each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK})
        for _ in range(2):
            made.add_node(num_cpus=2)
        yield made
        made.shutdown()


def run_on_ray(config: EvalConfig, suite: FakeSuite) -> Records:
    with on_ray(config, fakes) as (policies, place):
        assert place.machine["nodes"] >= 2
        run_episodes(config, suite, list(suite.tasks), policies, open_records(config), place)
    assert not ray.is_initialized()
    return Records.open(config.out)


def fakes(config: EvalConfig) -> Policies:
    """Loaded in the actor."""
    assert (config.device, config.threads) == ("cpu", 1)
    return fast_and_slow()


def finished(records: Records) -> dict[object, dict[str, object]]:
    """Everything in the rows but times, the machine, and the commit, which may change meanwhile."""
    varying = dict.fromkeys(("ms", "ms_stages", "simulator_seconds", "machine", "commit"))
    return {key: asdict(row) | varying for key, row in records.rows.items()}


def test_a_simulator_that_dies_is_asked_again_by_ray(cluster: Cluster, tmp_path: Path, marks: Path) -> None:
    out = tmp_path / "out"
    config = EvalConfig(suite="fake", trials=1, modes=("rsd",), ray=cluster.address, workers=2, out=out)
    records = run_on_ray(config, FakeSuite(marks, {("Push", 0): "die"}))
    assert [row.outcome for row in records.rows.values()] == ["success"] * 2
    assert len(records.file.read_text().splitlines()) == 2  # the runner saw no error
    assert len(list(marks.glob("begun_Push_*"))) == 2


def test_a_simulator_that_hangs_counts_as_crashed(cluster: Cluster, marks: Path) -> None:
    connect(cluster.address)
    simulator = RaySimulator(FakeSuite(marks, {("Push", 0): "hang"}), 4, 16, 60.0, {})
    simulator.reset("Push", 0)
    assert not simulator.collect().over
    simulator.timeout = 0.5
    simulator.step(np.ones((4, 7), np.float32))
    assert ready_actors([simulator], block=False) == []
    time.sleep(0.6)
    assert ready_actors([simulator], block=True) == [simulator]
    with pytest.raises(SimulatorCrash, match=r"the simulator did not answer within 0\.5 s"):
        simulator.collect()
    simulator.close()
    ray.shutdown()


def test_what_fails_in_the_policy_s_actor_is_one_line_here(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--ray", cluster.address, "--tasks", "Lift", "--trials", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--checkpoint", "nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rsd-fast: no checkpoint at 'nowhere': expected a folder, a hub id")
    assert main([*command, "--threads", "64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rsd-fast: the policy needs 64 CPUs and 0 GPUs of one node; the cluster's have ")
    assert main([*command, "--device", "cuda:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "got --device cuda:1 with --ray, expected auto, cpu or cuda: Ray chooses the GPU" in line


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert main(["eval", "--ray", "local", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "rsd-fast: got --ray, but Ray is not installed: pip install 'rsd-fast[ray]'\n"


@pytest.mark.slow
def test_the_shipped_policy_gives_the_same_codes(cluster: Cluster, tmp_path: Path) -> None:
    command = ["eval", "--tasks", "Lift", "--trials", "2", "--modes", "sequential,rsd", "--device", "cpu"]
    assert main([*command, "--workers", "2", "--threads", "1", "--out", str(tmp_path / "here")]) == 0
    assert main([*command, "--ray", cluster.address, "--out", str(tmp_path / "there")]) == 0
    here, there = Records.open(tmp_path / "here"), Records.open(tmp_path / "there")
    assert finished(here) == finished(there)
    assert len(here.rows) == 4


def test_nodes_are_killed_in_the_middle(run: Run, cluster: Cluster, tmp_path: Path, marks: Path) -> None:
    """First one, then the other; so the policy's is one of them, or the third has it by then."""
    nodes = list(cluster.worker_nodes)
    cluster.add_node(num_cpus=2)
    out = tmp_path / "killed"
    config = EvalConfig(suite="fake", trials=4, ray=cluster.address, workers=3, out=out, video=1)

    def kill_when_it_runs() -> None:
        wait_for_rows(out, 3)
        cluster.remove_node(nodes[0], allow_graceful=False)
        wait_for_rows(out, 8)
        cluster.remove_node(nodes[1], allow_graceful=False)

    killer = threading.Thread(target=kill_when_it_runs)
    killer.start()
    disturbed = run_on_ray(config, FakeSuite(marks, pause=0.03))
    killer.join()
    begun = len(list(marks.glob("begun_*")))
    assert begun > 16  # simulators died in episodes, which were played again
    assert len(disturbed.file.read_text().splitlines()) == 16  # by Ray: nothing was an error to the runner
    undisturbed = run(FakeSuite(marks), tasks=TASKS, trials=4, workers=2, video=1, out=tmp_path / "undisturbed")
    assert finished(disturbed) == finished(undisturbed)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in undisturbed.folder.iterdir())


def wait_for_rows(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while len(Records.open(folder).rows) < count and time.monotonic() < deadline:
        time.sleep(0.02)
