"""What every test gets: poisoned `torch.empty`, hypothesis without deadlines, GPU tests only where there is one."""

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch.utils._device import _device_constructors

settings.register_profile("rsd_fast", deadline=None)
settings.load_profile("rsd_fast")

LONG = ("_triton.py", "_compile.py")
ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The long files first: workers take files in turn, and one that starts last would run alone. The Makefile keeps
    # xdist from putting files of few tests last.
    items.sort(key=lambda item: not item.path.name.endswith(LONG))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session", autouse=True)
def poisoned_empty() -> Iterator[None]:
    """Uninitialised memory that the package asks for holds NaN, or a huge number: an unwritten output fails."""
    _device_constructors()  # torch remembers them at the first call; `with torch.device("meta")` needs the real ones
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ALLOCATORS:
            patch.setattr(owner, name, poisoning(getattr(owner, name)))
        yield


def poisoning(allocate):
    def wrapper(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if torch.compiler.is_compiling():
            return tensor
        if sys._getframe(1).f_globals.get("__name__", "").startswith("rsd_fast"):
            poison_(tensor)
        return tensor

    return wrapper


def poison_(tensor: torch.Tensor) -> None:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        tensor.detach().fill_(float("nan"))
    elif tensor.dtype is torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max)
