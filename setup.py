"""Finds the packages and builds the operator library; everything else is in pyproject.toml.

The import package `medusa_trt` is put together from folders of the repository's top level: each
that is a Python package becomes a sub-package of the same name.

The library has nothing of Python in it, so one wheel serves every version of it.
"""

from hashlib import sha256
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDERS = sorted(path.parent.name for path in Path().glob("*/__init__.py"))
PLACES = {name if name == "medusa_trt" else f"medusa_trt.{name}": name for name in FOLDERS}
SOURCES = sorted(path.as_posix() for path in Path("native").rglob("*.cpp"))
# The library holds this hash; runtime/engines/operators.py compares it with the checkout's sources.
FILES = sorted(Path("native").rglob("*.[chi]*"))
HASH = sha256(b"".join(path.read_bytes() for path in FILES)).hexdigest()[:16]


class BuildLibrary(build_ext):
    """Names the library without the version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """Returns the path of the library in the package."""
        return fullname.replace(".", "/") + ".so"


class BuildWheel(bdist_wheel):
    """Names the wheel for any version of Python, on one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the wheel's tags: of Python, of its binary interface, of the platform."""
        return ("py3", "none", super().get_tag()[2])


setup(
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": BuildWheel},
    packages=[
        package
        for root, folder in PLACES.items()
        for package in (root, *(f"{root}.{inner}" for inner in find_packages(folder)))
    ],
    package_dir=PLACES,
    ext_modules=[
        Extension(
            "medusa_trt.runtime.engines._operators",
            SOURCES,
            depends=[path.as_posix() for path in FILES],
            define_macros=[("MEDUSA_TRT_SOURCES", HASH)],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-g0", "-Wno-psabi"],
            # Without a compiler the package still installs, and the runtime says what is missing.
            optional=True,
        )
    ],
)
