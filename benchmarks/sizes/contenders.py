"""The contenders of `real_sizes.py`: random weights of one shape in each runtime's format."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from peer.contenders import Contender
from peer.environments import LLAMA_CPP, OPENVINO, WORKERS, PeerInstaller
from sizes.gguf_file import write_random_gguf

from medusa_trt.export.models.random_weights import config_from_name

DRAFT_VOCABULARY = 32_000
"""Tokens that the random heads draft from: Vicuna's vocabulary, whose accuracies are used."""

_MAX_LENGTH = 4096
_WORKERS = {
    "medusa-trt": "medusa_worker",
    "llama.cpp": "llama_cpp_worker",
    "OpenVINO": "openvino_worker",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A runtime with one precision.

    Attributes:
        runtime: name of the runtime.
        precision: name of the precision, as the runtime calls it.
        bits: bits of most weights; contenders of as many bits are measured together.
    """

    runtime: str
    precision: str
    bits: int

    @property
    def name(self) -> str:
        """Name in the tables."""
        return f"{self.runtime} {self.precision}"


FORMATS = (
    Format("medusa-trt", "int8", 8),
    Format("llama.cpp", "q8_0", 8),
    Format("OpenVINO", "int8", 8),
    Format("medusa-trt", "int4", 4),
    Format("llama.cpp", "q4_0", 4),
    Format("llama.cpp", "q4_k_m", 4),
    Format("OpenVINO", "int4", 4),
)


def make_contenders(
    installer: PeerInstaller,
    folder: Path,
    shape: str,
    num_layers: int,
    formats: Sequence[Format],
    pasts: Sequence[int],
) -> dict[Format, Contender]:
    """Makes a shape, cut to some layers, in each format.

    Args:
        installer: makes the environments.
        folder: folder for the models; a GGUF file in float16 is there for a while too.
        shape: name of the shape.
        num_layers: layers to keep.
        formats: which to make.
        pasts: lengths of texts in the KV cache.

    Raises:
        PeerError: a model could not be made.
    """
    installer.say(f"making {shape} with {num_layers} layers")
    gguf = folder / "float16.gguf"
    if any(form.runtime != "medusa-trt" for form in formats):
        write_random_gguf(gguf, config_from_name(shape, num_layers))
    environments = {"llama.cpp": LLAMA_CPP, "OpenVINO": OPENVINO}
    pythons = {
        runtime: installer.install_python(environment)
        for runtime, environment in environments.items()
        if any(form.runtime == runtime for form in formats)
    }

    def make(form: Format) -> Contender:
        python = pythons.get(form.runtime, Path(sys.executable))
        target = folder / f"{form.runtime}-{form.precision}-{num_layers}"
        if form.runtime == "OpenVINO":
            target.mkdir()
        worker = _WORKERS[form.runtime]
        command = [str(python), str(WORKERS / f"{worker}.py"), str(gguf), str(target)]
        command.append(form.precision)
        if form.runtime == "medusa-trt":
            command = export_command(shape, num_layers, form.precision, target)
        installer.run(command, target.name)
        options = {"model": str(target), "pasts": list(pasts)}
        return Contender(name=form.name, python=python, worker=worker, options=options)

    with ThreadPoolExecutor() as pool:
        contenders = dict(zip(formats, pool.map(make, formats), strict=True))
    gguf.unlink(missing_ok=True)
    return contenders


def export_command(shape: str, num_layers: int, precision: str, target: Path) -> list[str]:
    """The command that exports a bundle with heads."""
    command = [sys.executable, "-m", "medusa_trt", "export", "--model", shape, "--random-weights"]
    command += ["--layers", str(num_layers), "--precision", precision, "--output", str(target)]
    command += ["--draft-vocabulary", str(DRAFT_VOCABULARY), "--max-length", str(_MAX_LENGTH)]
    return command
