"""The `libero` package: where it is, and importing it without the question that it asks on its first import.

Both `hf-libero` and the original `libero` install this package. Nothing of either is changed on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .robosuite_suite import import_robosuite

INSTALL = "pip install 'rsd-fast[libero]' && pip install --no-deps hf-libero==0.1.4 bddl==1.0.1"
DISTRIBUTIONS = ("hf-libero", "libero")
CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
CONFIG_FILE = "config.yaml"
TASK_MAP = Path("benchmark", "libero_suite_task_map.py")
OBJECT_MODULES = ("articulated_objects", "google_scanned_objects", "hope_objects", "turbosquid_objects")


def package_folder() -> Path:
    """The folder `libero/libero` with tasks, initial states and, in the original package, assets; imports nothing.

    Raises:
        ImportError: it is not installed.
    """
    spec = find_spec("libero")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place, "libero")
        if (folder / TASK_MAP).is_file():
            return folder.resolve()
    raise ImportError(f"got no libero package, expected hf-libero or the original libero: {INSTALL}")


def package_version() -> str:
    """`hf-libero 0.1.4`, or what else it is."""
    for name in DISTRIBUTIONS:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "libero of unknown version"


def fetches_assets() -> bool:
    """Whether the package has no assets and downloads them by itself, as hf-libero does."""
    return "def get_assets_path" in (package_folder() / "__init__.py").read_text()


@cache
def import_envs() -> Any:
    """The module `libero.libero.envs.env_wrapper`.

    The package asks at the keyboard where data sets are to go unless it finds a config.yaml, so it gets to find one:
    the user's, or else one of ours, which `LIBERO_CONFIG_PATH` then names, for processes started from this one too.

    Raises:
        ImportError: the package or something that it needs is not installed, or robosuite is not 1.4.
    """
    package = package_folder()
    import_robosuite()
    if not (installed := version("robosuite")).startswith("1.4."):
        raise ImportError(f"got robosuite {installed}, expected 1.4.0, the one LIBERO is built on: {INSTALL}")
    os.environ[CONFIG_VARIABLE] = str(config_folder(package))
    try:
        return import_module("libero.libero.envs.env_wrapper")
    except ImportError as error:
        raise ImportError(f"libero cannot be imported ({error}): {INSTALL}") from error


def config_folder(package: Path) -> Path:
    """A folder with the config.yaml that libero reads: the user's if there is one, else one in the cache."""
    own = Path(os.environ.get(CONFIG_VARIABLE) or Path.home() / ".libero")
    if (own / CONFIG_FILE).exists():
        return own
    folder = cache_folder(package)
    text = json.dumps(  # which is YAML as well
        {
            "benchmark_root": str(package),
            "bddl_files": str(package / "bddl_files"),
            "init_states": str(package / "init_files"),
            "datasets": str(package.parent / "datasets"),
            "assets": str(package / "assets"),
        }
    )
    if not (folder / CONFIG_FILE).exists():
        draft = folder / f"{CONFIG_FILE}.{os.getpid()}"  # several processes may start at once
        draft.write_text(text)
        draft.replace(folder / CONFIG_FILE)
    return folder


def use_assets(assets: Path) -> None:
    """Makes the imported package read its meshes and textures from `assets`."""
    import_envs()
    package = import_module("libero.libero")
    if hasattr(package, "get_assets_path"):  # hf-libero looks here first
        package._assets_path_cache = str(assets)  # type: ignore[attr-defined]
        return
    # The original joins "assets" to the folder of its own code, of which each module has a copy.
    root = assets.parent if assets.name == "assets" else _linked(assets)
    import_module("libero.libero.envs.bddl_base_domain").DIR_PATH = str(root / "envs")  # type: ignore[attr-defined]
    for name in OBJECT_MODULES:
        import_module(f"libero.libero.envs.objects.{name}").absolute_path = root  # type: ignore[attr-defined]


def cache_folder(of: Path) -> Path:
    """A folder of ours in the user's cache that belongs to the path `of`."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "rsd_fast" / f"libero-{hashlib.sha256(str(of).encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _linked(assets: Path) -> Path:
    """A folder in which `assets` leads to the assets, whatever they are called."""
    folder = cache_folder(assets)
    with suppress(FileExistsError):  # an earlier process made it; by the folder's name, for these assets
        (folder / "assets").symlink_to(assets, target_is_directory=True)
    return folder
