"""NVTX ranges: balanced where somebody could look, nothing elsewhere."""

from __future__ import annotations

import types

import pytest
import torch

from rsd_fast import nvtx


def test_a_range_ends_whatever_happens_inside(monkeypatch):
    calls = []
    recorder = types.SimpleNamespace(range_push=calls.append, range_pop=lambda: calls.append("pop"))
    monkeypatch.setattr(nvtx, "_nvtx", lambda: recorder)
    with nvtx.nvtx_range("rsd/pass"), nvtx.nvtx_range("rsd/accept"):
        pass
    with pytest.raises(ValueError, match="of the caller"), nvtx.nvtx_range("env/step"):
        raise ValueError("of the caller")
    assert calls == ["rsd/pass", "rsd/accept", "pop", "pop", "env/step", "pop"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_cuda_a_range_does_nothing():
    assert nvtx._nvtx() is None
    with nvtx.nvtx_range("rsd/pass") as nothing:
        assert nothing is None
