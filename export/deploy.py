"""What a place needs to build a bundle's engines and serve them: scripts, pinned requirements."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from medusa_trt.errors import BuildError
from medusa_trt.export.deploy_triton import (
    HEALTH_CHECK,
    MODEL_NAME,
    TRITON_IMAGE,
    config_text,
    model_text,
)
from medusa_trt.export.output_folder import new_folder
from medusa_trt.export.targets import TARGETS
from medusa_trt.runtime.bundle import Bundle, GraphSpec

JETSON_TENSORRT = "10.3"
"""TensorRT of JetPack 6.1 and 6.2, where it comes with the system."""

_IMAGES = {
    "ort-cpu": "docker.io/library/python:3.12-slim",
    "ort-cuda": "docker.io/library/python:3.12-slim",
    "tensorrt": "nvcr.io/nvidia/tensorrt:25.09-py3",
}
"""Of a container; CUDA's libraries for ONNX Runtime come with its requirements."""

_SCRIPT_MODE = 0o755
_READ_SHARE = 2


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
        overwrite: replace a folder that is there.

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
    with new_folder(output, overwrite) as folder:
        for name, artifact in artifacts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(artifact.text, "utf-8")
            if artifact.runs:
                path.chmod(_SCRIPT_MODE)
    return [output / name for name in artifacts]


def _jetson(bundle: Bundle) -> dict[str, Artifact]:
    _check_target(bundle, "jetson", ("tensorrt-jetson",))
    capacity = bundle.manifest.model.max_length + max(64, bundle.tree.num_nodes)
    lines = [
        "#!/usr/bin/env bash",
        f"# Builds the engines with the TensorRT {JETSON_TENSORRT} of JetPack 6, on the device.",
        "# Time them with: trtexec --loadEngine=engines/verify.engine",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        'trtexec="$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)"',
        "mkdir -p engines",
    ]
    for graph in ("verify", "heads", "reduce"):
        spec = bundle.manifest.graphs[graph]
        arguments = [
            f"--onnx=bundle/{spec.file}",
            f"--saveEngine=engines/{graph}.engine.partial",
            "--stronglyTyped",
            "--skipInference",
            "--timingCacheFile=engines/timing.cache",
            *_shape_arguments(bundle, spec, capacity),
        ]
        lines += [
            '"$trtexec" \\\n  ' + " \\\n  ".join(map(shlex.quote, arguments)),
            f"mv engines/{graph}.engine.partial engines/{graph}.engine",
        ]
    return {
        "build_engines.sh": Artifact("\n".join(lines) + "\n", runs=True),
        "requirements.txt": Artifact(_requirements("tensorrt")),
        "health_check.sh": Artifact(
            _script(
                "# Succeeds where all engines load and run once.",
                'trtexec="$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)"',
                "for engine in verify heads reduce; do",
                '  "$trtexec" --loadEngine="engines/$engine.engine" --iterations=1 --duration=0'
                " --warmUp=0 > /dev/null",
                "done",
            ),
            runs=True,
        ),
    }


def _shape_arguments(bundle: Bundle, spec: GraphSpec, capacity: int) -> list[str]:
    """trtexec's ranges for one sequence, from one node to a prefill chunk."""
    nodes, chunk = bundle.tree.num_nodes, bundle.manifest.target.prefill_chunk
    sizes = {
        "batch": (1, 1, 1),
        "num_nodes": (1, nodes, max(nodes, chunk)),
        "num_rows": (1, nodes, max(nodes, chunk)),
        "num_read": (2, capacity // _READ_SHARE, capacity),
        "capacity": (capacity,) * 3,
    }
    arguments = []
    for which, option in enumerate(("min", "opt", "max")):
        shapes = []
        for tensor in spec.inputs:
            if any(isinstance(size, str) for size in tensor.shape):
                own = [s if isinstance(s, int) else sizes[s][which] for s in tensor.shape]
                shapes.append(f"{tensor.name}:{'x'.join(map(str, own))}")
        arguments.append(f"--{option}Shapes={','.join(shapes)}")
    return arguments


def _container(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "container", tuple(_IMAGES))
    return {
        "Containerfile": Artifact(_containerfile(_IMAGES[target], [])),
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
                "medusa-trt generate bundle 'hello' --raw --max-new-tokens 1 > /dev/null",
            ),
            runs=True,
        ),
    }


def _triton(bundle: Bundle) -> dict[str, Artifact]:
    target = _check_target(bundle, "triton", tuple(_IMAGES))
    return {
        "Containerfile": Artifact(_containerfile(TRITON_IMAGE, ["models"])),
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


def _containerfile(image: str, folders: list[str]) -> str:
    copied = "".join(f"COPY {folder} {folder}\n" for folder in (*folders, "bundle"))
    return (
        f"FROM {image}\n"
        "WORKDIR /app\n"
        "COPY requirements.txt ./\n"
        "RUN pip install --no-cache-dir --requirement requirements.txt\n"
        "COPY start.sh health_check.sh ./\n"
        f"{copied}"
        "HEALTHCHECK --interval=60s --timeout=60s --start-period=600s "
        'CMD ["./health_check.sh"]\n'
        'ENTRYPOINT ["./start.sh"]\n'
    )


def _engine_lines(target: str) -> list[str]:
    """Engines fit one GPU and version, so they are built where they run, when it starts."""
    builds = TARGETS[target].product is not None
    return ["[ -d bundle/engines ] || medusa-trt build bundle"] if builds else []


def _check_target(bundle: Bundle, kind: str, targets: tuple[str, ...]) -> str:
    """The bundle's target, which must be one of these."""
    own = bundle.manifest.target.name
    if own not in targets:
        raise BuildError(
            f"the bundle was exported for {own}, kind {kind} takes {' or '.join(targets)}: export "
            f"the model with --target {targets[-1]}"
        )
    return own


def _requirements(extra: str) -> str:
    packages = ("numpy", "tokenizers", "jinja2", "msgspec", "rich")
    pinned = [f"{name}=={version(name)}" for name in packages]
    return "\n".join([f"medusa-trt[{extra}]=={version('medusa-trt')}", *pinned]) + "\n"


def _script(*lines: str) -> str:
    head = ("#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")"')
    return "\n".join([*head, *lines]) + "\n"


KINDS: dict[str, Callable[[Bundle], dict[str, Artifact]]] = {
    "jetson": _jetson,
    "container": _container,
    "triton": _triton,
}
"""What can be deployed to."""
