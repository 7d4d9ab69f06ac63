"""What a place needs to build a bundle's engines and serve them: scripts, pinned requirements."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from medusa_trt.errors import BuildError
from medusa_trt.export.deploy.jetson import (
    JETSON_TENSORRT,
    ONE_TOKEN,
    build_lines,
    health_check_lines,
)
from medusa_trt.export.deploy.triton import (
    HEALTH_CHECK,
    MODEL_NAME,
    TRITON_IMAGE,
    config_text,
    model_text,
)
from medusa_trt.export.targets import TARGETS
from medusa_trt.files import replaced_files
from medusa_trt.runtime.bundle import Bundle

PINS = {
    "ort-cpu": {},
    "ort-cuda": {"cuda-python": "13.4.4"},
    "tensorrt": {"tensorrt": "11.4.0.106", "cuda-python": "13.4.4"},
    "jetson": {"cuda-python": "12.6.2.post1", "numpy": "2.2.6"},
}
"""Of packages that the machine that deploys need not have. JetPack 6 has CUDA 12.6, and TensorRT's
module for Python 3.10, whose last numpy this is."""

_COMMON = ("numpy", "tokenizers", "jinja2", "msgspec", "rich")
_PACKAGES = {
    "ort-cpu": ("onnxruntime",),
    "ort-cuda": (),  # the extra pins it
    "tensorrt": ("onnx-ir",),
    "jetson": ("onnx-ir",),
}
"""Pinned as they are here."""

_IMAGE = "docker.io/library/python:3.12-slim"
"""Of a container: CUDA's libraries and TensorRT come with the requirements."""

_CONTAINED = ("ort-cpu", "ort-cuda", "tensorrt")
"""Targets that run in a container."""

_WHEELS = """Wheels that no package index offers, such as one of medusa-trt itself, go here:
pip takes them first.
"""

_RUN_WITH = "# Run it with --device nvidia.com/gpu=all (podman) or --gpus all (docker).\n"
_SCRIPT_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file to write: its text, and whether it is run."""

    text: str
    runs: bool = False


def deploy(bundle: Bundle, kind: str, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes what a place needs beside a bundle.

    Args:
        bundle: what will run there; the scripts expect it in `bundle/` beside them.
        kind: "jetson", "container" or "triton".
        output: the folder to write; it appears whole or not at all.
        overwrite: replace files in a folder that is there.

    Returns:
        The files.

    Raises:
        BuildError: there is no such kind, the bundle was exported for another place, or the
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
    with replaced_files(output) as folder:  # The user's bundle may be in `output` and stays there.
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
        "build_engines.sh": Artifact(_script(*build_lines(bundle)), runs=True),
        "requirements.txt": Artifact(_requirements("jetson")),
        "health_check.sh": Artifact(_script(*health_check_lines(bundle)), runs=True),
    }


def _container(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "container", _CONTAINED)
    return {
        "Containerfile": Artifact(_containerfile(_IMAGE, target, [])),
        "wheels/README.txt": Artifact(_WHEELS),
        "requirements.txt": Artifact(_requirements(target)),
        "start.sh": Artifact(
            _script(
                "# Arguments replace the command, as in: podman run IMAGE medusa-trt bench bundle",
                *_engine_lines(target),
                'if [ $# -gt 0 ]; then exec "$@"; fi',
                "exec medusa-trt chat bundle",
            ),
            runs=True,
        ),
        "health_check.sh": Artifact(
            _script(
                "# Succeeds where the bundle is whole and answers.",
                f"medusa-trt {ONE_TOKEN}",
            ),
            runs=True,
        ),
    }


def _triton(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "triton", _CONTAINED)
    return {
        "Containerfile": Artifact(_containerfile(TRITON_IMAGE, target, ["models"])),
        "wheels/README.txt": Artifact(_WHEELS),
        "requirements.txt": Artifact(_requirements(target)),
        "start.sh": Artifact(
            _script(
                "# HTTP on port 8000, gRPC on 8001, metrics on 8002. Arguments go to the server.",
                *_engine_lines(target),
                'exec tritonserver --model-repository=models "$@"',
            ),
            runs=True,
        ),
        "health_check.sh": Artifact(_script(*HEALTH_CHECK), runs=True),
        f"models/{MODEL_NAME}/config.pbtxt": Artifact(config_text(bundle, "/app/bundle")),
        f"models/{MODEL_NAME}/1/model.py": Artifact(model_text()),
    }


def _containerfile(image: str, target: str, folders: list[str]) -> str:
    copied = "".join(f"COPY {folder} {folder}\n" for folder in (*folders, "bundle"))
    # Quantized bundles for the CPU run on operators that pip compiles where no wheel has them.
    compiler = (
        "RUN apt-get update && apt-get install --yes --no-install-recommends g++ "
        "&& rm -rf /var/lib/apt/lists/*\n"
    )
    return (
        "# Copy the bundle to bundle/, then: podman build --format docker --tag IMAGE .\n"
        "# (podman's own format has no HEALTHCHECK) or docker build --file Containerfile .\n"
        f"{'' if target == 'ort-cpu' else _RUN_WITH}"
        f"FROM {image}\n"
        "WORKDIR /app\n"
        f"{compiler if target == 'ort-cpu' else ''}"
        "COPY requirements.txt ./\n"
        "COPY wheels wheels\n"
        "RUN pip install --no-cache-dir --find-links wheels --requirement requirements.txt\n"
        "COPY start.sh health_check.sh ./\n"
        f"{copied}"
        "HEALTHCHECK --interval=60s --timeout=60s --start-period=600s "
        'CMD ["./health_check.sh"]\n'
        'ENTRYPOINT ["./start.sh"]\n'
    )


def _engine_lines(target: str) -> list[str]:
    """Engines fit one GPU and version, so they are built where they run, when it starts."""
    builds = TARGETS[target].product is not None
    found = f"compgen -G 'bundle/engines/{target}-sm*/engines.json' > /dev/null"
    line = f"{found} || medusa-trt build bundle"
    return [line] if builds else []


def _check_target(bundle: Bundle, kind: str, targets: tuple[str, ...]) -> str:
    """The bundle's target, which must be one of these."""
    own = bundle.manifest.target.name
    if own not in targets:
        raise BuildError(
            f"the bundle was exported for {own}, kind {kind} takes {' or '.join(targets)}: export "
            f"the model with --target {targets[-1]}"
        )
    return own


def _requirements(place: str) -> str:
    names = dict.fromkeys((*PINS[place], *_PACKAGES[place], *_COMMON))
    lines = [f"{name}=={PINS[place].get(name) or version(name)}" for name in names]
    if place == "jetson":
        head = [
            f"# For JetPack 6's Python 3.10, whose TensorRT {JETSON_TENSORRT} is the system's:",
            "# python3 -m venv --system-site-packages env",
            f"medusa-trt=={version('medusa-trt')}",
        ]
    else:
        head = [f"medusa-trt[{place}]=={version('medusa-trt')}"]
    return "\n".join([*head, *lines]) + "\n"


def _script(*lines: str) -> str:
    head = ("#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")"')
    return "\n".join([*head, *lines]) + "\n"


KINDS: dict[str, Callable[[Bundle], dict[str, Artifact]]] = {
    "jetson": _jetson,
    "container": _container,
    "triton": _triton,
}
"""What can be deployed to."""
