"""Builds the operator library; everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(str(path) for path in Path("native").glob("*.cpp"))

setup(
    ext_modules=[
        Extension(
            "medusa_trt.runtime._operators",
            SOURCES,
            depends=[str(path) for path in Path("native").glob("*.[hi]*")],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-g0", "-Wno-psabi"],
            # Without a compiler the package still installs, and the runtime says what is missing.
            optional=True,
        )
    ]
)
