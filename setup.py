"""Packages and the compiled parts; everything else is in pyproject.toml.

`kernels/` of this repository installs as `rsd_fast.kernels`, never as a top-level `kernels`: that name
belongs to another library, which transformers looks for.

CMake builds the compiled parts (CMakeLists.txt). Without CMake or a compiler the install succeeds all the
same and says so in one line; the reference backend then serves. RSD_FAST_BUILD: `auto` (default), `0` builds
nothing, `1` makes a failed build an error. RSD_FAST_CUDA: the same for the CUDA part.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def choice(name: str) -> str:
    """An environment variable that is `0`, `1` or `auto`."""
    value = os.environ.get(name, "auto")
    if value not in ("0", "1", "auto"):
        raise ValueError(f"{name}: got {value!r}, expected 0, 1 or auto")
    return value


def last_line(error: Exception) -> str:
    """What a failed step said last."""
    output = getattr(error, "stderr", None) or str(error)
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


class CMakeBuild(build_ext):
    """Builds CMakeLists.txt and puts the libraries beside the Python files that load them."""

    def run(self) -> None:
        wanted = choice("RSD_FAST_BUILD")
        if wanted == "0":
            return
        cuda = choice("RSD_FAST_CUDA")
        try:
            try:
                self.build_with_cmake(cuda)
            except subprocess.CalledProcessError as error:
                if cuda != "auto" or shutil.which("nvcc") is None:
                    raise
                self.warn(f"rsd_fast: the CUDA part was not built, trying without it ({last_line(error)})")
                self.build_with_cmake("0")
        except (OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise
            self.warn(f"rsd_fast: compiled kernels were not built, the reference serves ({last_line(error)})")

    def build_with_cmake(self, cuda: str) -> None:
        cmake = shutil.which("cmake")
        if cmake is None:
            raise FileNotFoundError("cmake not found")
        target = (
            ROOT / "kernels" if self.editable_mode else Path(self.build_lib, "rsd_fast", "kernels").resolve()
        )
        build = Path(self.build_temp).resolve()
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = [
            *("-S", str(ROOT), "-B", str(build), *generator, "-DCMAKE_BUILD_TYPE=Release"),
            f"-DRSD_FAST_KERNELS_DIR={target}",
            f"-DRSD_FAST_CUDA={cuda}",
        ]
        for step in (configure, ["--build", str(build)]):
            done = subprocess.run([cmake, *step], capture_output=True, text=True)
            self.announce(done.stdout, level=2)
            if done.returncode:
                raise subprocess.CalledProcessError(
                    done.returncode, step, done.stdout, done.stderr or done.stdout
                )

    def get_outputs(self) -> list[str]:
        return []  # the libraries lie in the package folders already, under their own names

    def get_output_mapping(self) -> dict[str, str]:
        return {}


packages = find_namespace_packages(
    str(ROOT), include=["rsd_fast", "rsd_fast.*"], exclude=["rsd_fast.checkpoints*"]
)
kernels = ["rsd_fast.kernels"] + [
    f"rsd_fast.kernels.{name}"
    for name in find_namespace_packages(str(ROOT / "kernels"))
    if "__pycache__" not in name
]

setup(
    packages=packages + kernels,
    package_dir={"rsd_fast": "rsd_fast", "rsd_fast.kernels": "kernels"},
    package_data={
        "rsd_fast": ["checkpoints/**", "train/configs/*.toml"],
        "rsd_fast.kernels": ["**/*.cpp", "**/*.cu", "**/*.h", "**/*.json"],
    },
    ext_modules=[Extension("rsd_fast.kernels.compiled", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
