"""The registry: which backend serves, why, and what it says when one is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from rsd_fast.kernels import registry
from rsd_fast.kernels.accept.cpu import accept_cpu_
from rsd_fast.kernels.accept.reference import accept_reference_
from rsd_fast.kernels.registry import BACKENDS, Backend, pick

MISSING = Backend("quick", ("cpu", "cuda"), "rsd_fast.kernels.accept.not_there", "accept_quick_")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch) -> Iterator[None]:
    """No choice survives a test, and none of the shell's."""
    monkeypatch.delenv("RSD_FAST_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    registry._pick.cache_clear()
    yield
    registry._pick.cache_clear()


@pytest.fixture
def missing(monkeypatch) -> None:
    monkeypatch.setitem(BACKENDS, "accept", (MISSING, *BACKENDS["accept"]))


def test_the_compiled_backend_serves_cpu_tensors():
    for device in ("cpu", torch.device("cpu")):
        choice = pick("accept", device)
        assert (choice.name, choice.run) == ("cpu", accept_cpu_)
        assert choice.why == "accept on cpu: cpu, the fastest there is"


def test_a_caller_may_ask():
    choice = pick("accept", "cpu", "reference")
    assert choice.run is accept_reference_
    assert choice.why == "accept on cpu: reference, because the caller asked for it"


def test_the_environment_forces_what_is_left_open(monkeypatch):
    monkeypatch.setenv("RSD_FAST_BACKEND", "reference")
    choice = pick("accept", "cpu")
    assert choice.name == "reference"
    assert choice.why == "accept on cpu: reference, because RSD_FAST_BACKEND asked for it"
    assert pick("accept", "cpu", "cpu").name == "cpu"


@pytest.mark.parametrize("wanted", ["triton", "fast"])
def test_a_backend_that_does_not_run_here(wanted, monkeypatch):
    message = rf"accept on cpu: got backend '{wanted}' from {{}}, expected one of \['cpu', 'reference', 'auto'\]"
    with pytest.raises(ValueError, match=message.format("the caller")):
        pick("accept", "cpu", wanted)
    monkeypatch.setenv("RSD_FAST_BACKEND", wanted)
    with pytest.raises(ValueError, match=message.format("RSD_FAST_BACKEND")):
        pick("accept", "cpu")


def test_tritons_interpreter_runs_on_the_cpu_when_asked(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = next(backend for backend in BACKENDS["accept"] if backend.name == "triton")
    assert "cpu" in registry._devices(triton)
    assert pick("accept", "cpu").name == "cpu"


@pytest.mark.usefixtures("missing")
def test_a_better_backend_that_is_missing_is_named_once(recwarn):
    choice = pick("accept", "cpu")
    assert choice.name == "cpu"
    assert choice.why.startswith("accept on cpu: cpu, because quick is missing (No module named")
    assert pick("accept", "cpu") is choice
    assert [str(warning.message) for warning in recwarn] == [choice.why]


@pytest.mark.usefixtures("missing")
def test_asking_for_a_missing_backend_is_an_error():
    with pytest.raises(RuntimeError, match="the caller asked for quick, but No module named"):
        pick("accept", "cpu", "quick")


def test_unknown_ops_and_devices():
    with pytest.raises(ValueError, match=r"got op 'accpt', expected one of \['accept', "):
        pick("accpt", "cpu")
    with pytest.raises(ValueError, match="accept: no backend runs on 'meta'"):
        pick("accept", "meta")


def test_importing_the_op_loads_no_backend():
    code = (
        "import sys, rsd_fast.kernels.accept; "
        "names = {'rsd_fast.kernels.accept.' + name for name in ('cpu', 'reference', 'triton')}; "
        "sys.exit(str(names & set(sys.modules)) if names & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
