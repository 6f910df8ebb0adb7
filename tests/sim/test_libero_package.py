"""Importing LIBERO without its question, and finding its assets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsd_fast.sim import libero_assets, libero_package
from rsd_fast.sim.libero_assets import ASSETS_VARIABLE, FOLDERS, find_assets
from tests.sim.libero_setup import libero

ASKS = """
import os
folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
if not os.path.exists(os.path.join(folder, "config.yaml")):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
"""


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[Path]:
    with libero() as assets:
        yield assets


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """The layout of the original package, which looks for assets beside its own code."""
    objects = {f"libero/libero/envs/objects/{name}.py": "" for name in libero_package.OBJECT_MODULES}
    return write(
        tmp_path / "original",
        {
            "libero/__init__.py": "",
            "libero/libero/__init__.py": ASKS,
            f"libero/libero/{libero_package.TASK_MAP}": "libero_task_map = {'libero_10': ['KITCHEN_SCENE1_do_it']}",
            "libero/libero/envs/__init__.py": "",
            "libero/libero/envs/env_wrapper.py": "class ControlEnv: pass",
            "libero/libero/envs/bddl_base_domain.py": "DIR_PATH = None",
            "libero/libero/envs/objects/__init__.py": "",
            **objects,
        },
    )


def run(code: str, home: Path, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with nobody at the keyboard and another home."""
    environment = {key: value for key, value in os.environ.items() if key != libero_package.CONFIG_VARIABLE}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **variables}
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


# ---- the import

IMPORT = """
from rsd_fast.sim.gl import gl_for_import
from rsd_fast.sim.libero_package import import_envs, use_assets
with gl_for_import(False):
    print(import_envs().ControlEnv.__name__)
"""
READ_CONFIG = IMPORT + "from libero.libero import get_libero_path\nprint(get_libero_path('bddl_files'))"


def test_nothing_is_asked_and_the_paths_are_those_of_the_package(tmp_path: Path):
    for _ in range(2):  # the second one finds the file of the first
        done = run(READ_CONFIG, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["ControlEnv", str(libero_package.package_folder() / "bddl_files")]
    assert not (tmp_path / ".libero").exists()
    assert [path.name for path in (tmp_path / "cache" / "rsd_fast").glob("libero-*/*")] == ["config.yaml"]


def test_the_package_itself_would_ask(tmp_path: Path, original: Path):
    for path in (None, original):
        done = run("import libero.libero", tmp_path, path)
        assert done.returncode and "EOFError" in done.stderr


def test_a_user_s_configuration_is_used_and_left_alone(tmp_path: Path):
    own = write(tmp_path, {".libero/config.yaml": "bddl_files: mine\n"})
    elsewhere = write(tmp_path / "elsewhere", {"config.yaml": "bddl_files: other\n"})
    assert run(READ_CONFIG, own).stdout.split() == ["ControlEnv", "mine"]
    assert run(READ_CONFIG, own, LIBERO_CONFIG_PATH=str(elsewhere)).stdout.split() == ["ControlEnv", "other"]
    assert (own / ".libero/config.yaml").read_text() == "bddl_files: mine\n"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("folder", ["assets", "libero-assets"])
def test_the_original_package_finds_assets_of_any_name(tmp_path: Path, original: Path, folder: str):
    write(tmp_path / folder, {"scenes/x.xml": "<x/>"})
    code = IMPORT + (
        "import sys, os; from pathlib import Path\n"
        f"use_assets(Path({str(tmp_path / folder)!r}))\n"
        "from libero.libero.envs import bddl_base_domain, objects\n"
        "print(open(os.path.abspath(os.path.join(bddl_base_domain.DIR_PATH, '../assets')) + '/scenes/x.xml').read())\n"
        "print(*[open(f'{module.absolute_path}/assets/scenes/x.xml').read()\n"
        "        for name, module in sys.modules.items() if name.startswith('libero.libero.envs.objects.')])\n"
    )
    for _ in range(2):
        done = run(code, tmp_path / "home", original)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["ControlEnv"] + ["<x/>"] * 5


def test_tasks_are_read_without_importing_the_package(tmp_path: Path, original: Path):
    code = "import sys; from rsd_fast.sim.suites import get_suite; print(get_suite('libero_10').tasks[0].instruction)\n"
    done = run(code + "print('libero.libero' in sys.modules, 'torch' in sys.modules)", tmp_path, original)
    assert done.stdout.splitlines() == ["do it", "False False"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"libero/libero/envs/env_wrapper.py": "import no_such_package"}, "No module named 'no_such_package'"),
        ({"robosuite/__init__.py": "import no_such_package"}, "robosuite"),
    ],
)
def test_a_missing_piece_is_one_error_that_says_what_to_install(tmp_path, original, change, message):
    done = run(IMPORT, tmp_path, write(original, change))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith("ImportError") and message in last
    assert "pip install" in last


def test_no_libero_at_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(libero_package, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"got no libero package, expected .*pip install --no-deps hf-libero==0.1.4"):
        libero_package.package_folder()
    assert "pip install 'rsd-fast[libero]'" in libero_package.INSTALL


def test_a_robosuite_that_libero_cannot_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(libero_package, "import_robosuite", lambda: None)
    monkeypatch.setattr(libero_package, "version", lambda name: "1.5.1")
    with pytest.raises(ImportError, match=r"got robosuite 1.5.1, expected 1.4.0"):
        libero_package.import_envs.__wrapped__()


# ---- the assets


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is: `package` is where LIBERO is, `downloads` where it downloads to."""
    monkeypatch.delenv(ASSETS_VARIABLE)
    write(tmp_path, {"package/__init__.py": "def get_assets_path(): ..."})
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setattr(libero_package, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setattr(libero_assets, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    return tmp_path


def offline(*arguments: object, **settings: object) -> str:
    raise OSError("no network")


def fill(folder: Path) -> Path:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    return folder


def test_the_variable_comes_first_then_the_package_then_downloads(places: Path, monkeypatch: pytest.MonkeyPatch):
    downloads = fill(places / "downloads")
    assert find_assets() == downloads
    package = fill(places / "package" / "assets")
    assert find_assets() == package
    named = fill(places / "named")
    monkeypatch.setenv(ASSETS_VARIABLE, str(named))
    assert find_assets() == named


def test_a_variable_that_leads_nowhere_is_an_error(places: Path, monkeypatch: pytest.MonkeyPatch):
    fill(places / "downloads")
    monkeypatch.setenv(ASSETS_VARIABLE, str(places / "nowhere"))
    with pytest.raises(FileNotFoundError, match=rf"got {ASSETS_VARIABLE}=.*nowhere, .* it has no .*'scenes'"):
        find_assets()


def test_hf_libero_s_are_downloaded_once(places: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    calls: list[tuple[str, str]] = []

    def download(repo: str, *, repo_type: str, local_dir: Path) -> None:
        calls.append((repo, repo_type))
        fill(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_assets() == find_assets() == places / "downloads"
    assert calls == [("lerobot/libero-assets", "dataset")]
    assert "downloading lerobot/libero-assets" in capsys.readouterr().err


def test_a_download_that_was_cut_short_is_no_assets(places: Path, monkeypatch: pytest.MonkeyPatch):
    fill(places / "downloads")
    write(places, {"downloads/.cache/huggingface/download/scenes/x.incomplete": ""})
    with pytest.raises(FileNotFoundError, match="the first environment will download them"):
        find_assets(download=False)
    called: list[bool] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: called.append(True))
    find_assets()
    assert called == [True]


def test_a_download_that_fails_says_what_to_do(places: Path):
    with pytest.raises(FileNotFoundError, match=rf"failed \(no network\); set {ASSETS_VARIABLE} to"):
        find_assets()


def test_the_original_package_downloads_nothing(places: Path, monkeypatch: pytest.MonkeyPatch):
    write(places, {"package/__init__.py": ""})
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("it did"))
    with pytest.raises(FileNotFoundError, match=rf"got no LIBERO assets in .*package/assets.*; set {ASSETS_VARIABLE}"):
        find_assets()
