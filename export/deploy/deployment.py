"""Writes the scripts and pinned requirements that build a bundle's engines and serve them."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from medusa_trt import __version__
from medusa_trt.errors import BuildError
from medusa_trt.export.deploy.cluster.manifests import (
    render_compose,
    render_kubernetes,
    render_ray,
)
from medusa_trt.export.deploy.jetson import (
    JETSON_TENSORRT,
    render_build_script,
    render_health_check,
)
from medusa_trt.export.deploy.templates import render_template
from medusa_trt.export.targets import TARGETS
from medusa_trt.files import replace_files
from medusa_trt.runtime.bundle import Bundle

PINS = {
    "ort-cpu": {},
    "ort-cuda": {"cuda-python": "13.4.4"},
    "tensorrt": {"tensorrt": "11.4.0.106", "cuda-python": "13.4.4"},
    "jetson": {"cuda-python": "12.6.2.post1", "numpy": "2.2.6"},
}
"""Versions of packages that need not be installed on the machine that runs `deploy`.

JetPack 6 has CUDA 12.6, and TensorRT's module for Python 3.10; numpy 2.2.6 is the last for it."""

_COMMON = ("numpy", "tokenizers", "jinja2", "msgspec", "rich")
_PACKAGES = {
    "ort-cpu": ("onnxruntime",),
    "ort-cuda": (),  # The extra pins onnxruntime-gpu.
    "tensorrt": ("onnx-ir",),
    "jetson": ("onnx-ir",),
}
"""Packages that are pinned to the version installed here."""

_EXTRAS: dict[str, tuple[str, ...]] = {
    "grammar": ("llguidance",),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "scale": ("fastapi", "uvicorn", "prometheus-client"),
}
"""Packages of medusa-trt's extras that are pinned too; Ray's version is that of the cluster."""

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_IMAGE = f"docker.io/library/python:{_PYTHON}-slim"
"""Image of a container, with the Python that runs `deploy`, so a wheel that it builds fits.

CUDA's libraries and TensorRT come with the requirements."""

_TRITON_IMAGE, _TRITON_PYTHON = "nvcr.io/nvidia/tritonserver:25.09-py3", "3.12"
"""Triton's image and its Python. From 24.11 on its Python backend works with numpy 2."""

_TRITON_MODEL = "medusa"

_TRITON_CODE = "from medusa_trt.serving.triton_model import TritonPythonModel\n"

_CONTAINED = ("ort-cpu", "ort-cuda", "tensorrt")
"""Targets that run in a container."""

_WHEELS = """pip takes what lies here before what a package index offers. medusa-trt is on none, so
build its wheel with Python {python}, that of the image, in a checkout of medusa-trt:

    python{python} -m pip wheel --no-deps --wheel-dir THIS_FOLDER .

A source archive fits every Python, and is compiled in the image where that has a compiler:

    python setup.py sdist --dist-dir THIS_FOLDER
"""

_SCRIPT_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file to write: its text, and whether it is a script to run."""

    text: str
    runs: bool = False


def deploy(bundle: Bundle, kind: str, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes the files that a machine needs beside a bundle.

    Args:
        bundle: the bundle that will run there; the scripts expect it in `bundle/` beside them.
        kind: a name in `KINDS`.
        output: the folder to write; it appears whole or not at all.
        overwrite: replace files in a folder that exists.

    Returns:
        Paths of the files.

    Raises:
        BuildError: there is no such kind, the bundle's target does not run there, or the
            folder exists.
        ExportError: it cannot be written.
    """
    if kind not in KINDS:
        raise BuildError(f"unknown kind {kind!r}: choose {', '.join(KINDS)}")
    artifacts = KINDS[kind](bundle)
    if output.exists() and not overwrite:
        raise BuildError(f"{output} exists: give another --output, or --overwrite to replace it")
    if not (parent := output.absolute().parent).is_dir():
        raise BuildError(f"cannot write {output}: {parent} is not a folder")
    with replace_files(output) as folder:  # The user's bundle may be in `output` and stays there.
        for name, artifact in artifacts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(artifact.text, "utf-8")
            if artifact.runs:
                path.chmod(_SCRIPT_MODE)
    return [output / name for name in artifacts]


def _jetson(bundle: Bundle) -> dict[str, Artifact]:
    _check_target(bundle, "jetson", ("tensorrt-jetson",))
    return {
        "build_engines.sh": Artifact(render_build_script(bundle), runs=True),
        "requirements.txt": Artifact(_requirements("jetson")),
        "health_check.sh": Artifact(render_health_check(bundle), runs=True),
    }


def _container(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "container", _CONTAINED)
    return _container_artifacts("container", target, _IMAGE, _PYTHON, ["bundle"])


def _kubernetes(bundle: Bundle) -> dict[str, Artifact]:
    return _container(bundle) | _as_artifacts(render_kubernetes(bundle))


def _compose(bundle: Bundle) -> dict[str, Artifact]:
    return _container(bundle) | _as_artifacts(render_compose(bundle))


def _ray(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "ray", _CONTAINED)
    requirements = _requirements(target, ("scale", "grammar"))
    return {"requirements.txt": Artifact(requirements)} | _as_artifacts(render_ray(bundle))


def _as_artifacts(texts: Mapping[str, str]) -> dict[str, Artifact]:
    return {name: Artifact(text) for name, text in texts.items()}


def _triton(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "triton", _CONTAINED)
    values = {"target": target, "model_name": _TRITON_MODEL}
    return {
        **_container_artifacts(
            "triton", target, _TRITON_IMAGE, _TRITON_PYTHON, ["models", "bundle"]
        ),
        f"models/{_TRITON_MODEL}/config.pbtxt": Artifact(
            render_template("triton_config.pbtxt", values)
        ),
        f"models/{_TRITON_MODEL}/1/model.py": Artifact(_TRITON_CODE),
    }


def _container_artifacts(
    kind: str, target: str, image: str, python: str, folders: list[str]
) -> dict[str, Artifact]:
    """Returns the files of a container image. Engines fit one GPU, so its start builds them."""
    values = {
        "target": target,
        "image": image,
        "folders": folders,
        "builds_engines": TARGETS[target].product is not None,
        "model_name": _TRITON_MODEL,
        "serves": kind == "container",
    }
    extras = ("serve", "grammar") if kind == "container" else ("grammar",)
    return {
        "Containerfile": Artifact(render_template("containerfile", values)),
        "wheels/README.txt": Artifact(_WHEELS.format(python=python)),
        "requirements.txt": Artifact(_requirements(target, extras)),
        "start.sh": Artifact(render_template(f"{kind}_start.sh", values), runs=True),
        "health_check.sh": Artifact(render_template(f"{kind}_health_check.sh", values), runs=True),
    }


def _check_target(bundle: Bundle, kind: str, targets: tuple[str, ...]) -> str:
    """Returns the bundle's target, which must be one of `targets`."""
    target = bundle.manifest.target.name
    if target not in targets:
        raise BuildError(
            f"the bundle was exported for {target}, kind {kind} takes {' or '.join(targets)}: "
            f"export the model with --target {targets[-1]}"
        )
    return target


def _requirements(place: str, extras: tuple[str, ...] = ()) -> str:
    """Returns the requirements of a place; extras are those of medusa-trt."""
    added = [name for extra in extras for name in _EXTRAS[extra]]
    names = dict.fromkeys((*PINS[place], *_PACKAGES[place], *_COMMON, *added))
    lines = [f"{name}=={PINS[place].get(name) or version(name)}" for name in names]
    if place == "jetson":
        head = [
            f"# For JetPack 6's Python 3.10, whose TensorRT {JETSON_TENSORRT} is the system's:",
            "# python3 -m venv --system-site-packages env",
            f"medusa-trt=={__version__}",
        ]
    else:
        head = [f"medusa-trt[{','.join((place, *extras))}]=={__version__}"]
    return "\n".join([*head, *lines]) + "\n"


KINDS: dict[str, Callable[[Bundle], dict[str, Artifact]]] = {
    "jetson": _jetson,
    "container": _container,
    "triton": _triton,
    "kubernetes": _kubernetes,
    "compose": _compose,
    "ray": _ray,
}
"""Function that makes the files of each kind of deployment."""
