"""Triton Inference Server itself, from the package nvidia-pytriton; it needs no GPU.

The environment variable TRITON_PYTHON names a Python that has this package, and medusa-trt with
what its runtime needs.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

_START_S = 120.0


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A running server.

    Attributes:
        http: address of its HTTP endpoint.
        grpc: address of its gRPC endpoint.
        log: what it wrote so far.
    """

    http: str
    grpc: str
    log: Path


PYTHON = os.environ.get("TRITON_PYTHON", "")
"""The Python in which Triton runs the model; "" if there is none."""


@dataclass(frozen=True, slots=True)
class _Installation:
    """What is installed beside a Python.

    Attributes:
        root: folder of the server's files.
        libraries: folders of the libraries that it needs.
        version: major and minor version of the Python.
    """

    root: Path
    libraries: list[str]
    version: str


def _find_installation() -> _Installation:
    code = (
        "import json, pytriton, sys, sysconfig\n"
        "version = '%d.%d' % sys.version_info[:2]\n"
        "print(json.dumps([pytriton.__path__[0], sysconfig.get_config_var('LIBDIR'), version]))"
    )
    done = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True)
    package, library, version = json.loads(done.stdout)
    libraries = [str(Path(package).parent / "nvidia_pytriton.libs"), library]
    return _Installation(Path(package) / "tritonserver", libraries, version)


@contextmanager
def running_triton(repository: Path, folder: Path) -> Iterator[TritonServer]:
    """Runs the server on a model repository until the end of the block.

    Args:
        repository: holds the models.
        folder: gets the backend and the log.
    """
    installation = _find_installation()
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in opened:
            each.bind(("127.0.0.1", 0))
        http_port, grpc_port = (each.getsockname()[1] for each in opened)
    command = [
        str(installation.root / "bin/tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_prepare_backend(installation, folder)}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"),
        *("--backend-config=python,shm-default-byte-size=1048576", "--exit-timeout-secs=5"),
    ]
    log = folder / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=_environment(installation)
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{http_port}", process, log)
        yield TritonServer(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def _prepare_backend(installation: _Installation, folder: Path) -> Path:
    """Copies the Python backend, with the stub of this Python beside it."""
    backends = folder / "backends"
    shutil.copytree(installation.root / "backends", backends)
    name = "triton_python_backend_stub"
    stub = installation.root / "python_backend_stubs" / installation.version / name
    shutil.copy(stub, backends / "python" / name)
    return backends


def _environment(installation: _Installation) -> dict[str, str]:
    """The stub finds its packages by the `python3` of the path."""
    return os.environ | {
        "LD_LIBRARY_PATH": ":".join(installation.libraries),
        "PATH": f"{Path(PYTHON).absolute().parent}:{os.environ['PATH']}",
    }


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _START_S
    while True:
        assert process.poll() is None and time.monotonic() < end, log.read_text("utf-8", "replace")
        try:
            if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
