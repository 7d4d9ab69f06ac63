"""Installs the contenders of `peers.py`, pinned, and writes the model in their formats.

Everything is made once, below one folder. A model's file or folder gets its name only when it is
complete. An environment cannot be renamed: it has a marker file when it is complete.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medusa_trt.errors import MedusaError
from medusa_trt.files import make_folder, replace_file

WORKERS = Path(__file__).resolve().parent / "workers"

_MARKER = ".complete"


class PeerError(MedusaError):
    """A contender failed, or it cannot be set up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment with pinned packages.

    Attributes:
        name: name of its folder.
        requirements: packages with exact versions.
        variables: environment variables for compiling them.
    """

    name: str
    requirements: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()


# llama.cpp is compiled for this processor. GCC 12 declares only 8 of the 64 bytes that
# `_tile_loadconfig` reads, so its optimizer drops stores to the others, and llama.cpp's AMX kernels
# crash. The two -fno options prevent that.
LLAMA_CPP = Environment(
    name="llama-cpp-python-0.3.36",
    requirements=("llama-cpp-python==0.3.36", "numpy==2.4.6"),
    variables=(
        (
            "CMAKE_ARGS",
            "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF '-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse'",
        ),
    ),
)
GENAI = Environment(
    name="onnxruntime-genai-0.18.0",
    requirements=("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "numpy==2.4.6"),
)
OPENVINO = Environment(
    name="openvino-genai-2026.4.1.0",
    requirements=(
        "openvino-genai==2026.4.1.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "numpy==2.4.6",
    ),
)


@dataclass(frozen=True, slots=True)
class PeerInstaller:
    """Makes environments and models below a folder.

    Attributes:
        folder: the folder.
        say: prints a line before each step that takes long.
    """

    folder: Path
    say: Callable[[str], None]

    def install_python(self, environment: Environment) -> Path:
        """Returns the Python interpreter of an environment, after installing it if it is missing.

        Raises:
            PeerError: pip cannot install it.
        """
        folder = self.folder / environment.name
        python = folder / "bin" / "python"
        if not (folder / _MARKER).is_file():
            self.say(f"installing {' '.join(environment.requirements)}")
            shutil.rmtree(folder, ignore_errors=True)
            variables = dict(environment.variables)
            self.run([sys.executable, "-m", "venv", str(folder)], environment.name)
            pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
            if variables:  # A package in pip's cache may be compiled without these variables.
                pip.append("--no-cache-dir")
            self.run([*pip, *environment.requirements], environment.name, variables)
            (folder / _MARKER).touch()
        return python

    def make_hugging_face_folder(self, model: str) -> Path:
        """Writes the model as a folder for transformers and onnxruntime-genai's builder.

        Raises:
            MedusaError: the model cannot be loaded.
        """

        def make(target: Path) -> None:
            from medusa_trt.export.models.base_model import load_base_model, save_model
            from medusa_trt.export.models.source import source_from_name

            base = load_base_model(source_from_name(model))
            save_model(base.model, target)
            base.tokenizer.save_pretrained(target)

        return self.make_once(f"{model}-hf", make)

    def make_genai_folder(self, model: str, precision: str) -> Path:
        """Writes the model with onnxruntime-genai's model builder, from the Hugging Face folder.

        The builder runs with this project's torch and transformers. For int4 it uses blocks of 32
        and int8 activations (accuracy level 4), ONNX Runtime's fastest.

        Raises:
            PeerError: the builder failed.
        """
        python = self.install_python(GENAI)
        (builder,) = python.parents[1].glob(
            "lib/*/site-packages/onnxruntime_genai/models/builder.py"
        )
        source = self.make_hugging_face_folder(model)
        options = ["--extra_options", "accuracy_level=4", "block_size=32"]

        name = f"{model}-genai-{precision}"

        def make(target: Path) -> None:
            command = [sys.executable, str(builder), "-i", str(source), "-o", str(target)]
            command += ["-p", precision, "-e", "cpu", "-c", str(target / "cache")]
            self.run(command + (options if precision == "int4" else []), name)

        return self.make_once(name, make)

    def make_gguf_file(self, model: str, precision: str) -> Path:
        """Returns the model's GGUF file, or quantizes it to another precision.

        Raises:
            PeerError: the model is not a GGUF file, or llama.cpp cannot quantize it.
        """
        from medusa_trt.export.models.source import source_from_name

        python, source = self.install_python(LLAMA_CPP), source_from_name(model)
        if source.gguf_file is None:
            raise PeerError(f"{model} is not a GGUF file")
        original = Path(source.location) / source.gguf_file
        if precision in original.name.lower():
            return original
        script, name = WORKERS / "llama_cpp_worker.py", f"{model}-{precision}.gguf"

        def make(target: Path) -> None:
            self.run([str(python), str(script), str(original), str(target), precision], name)

        return self.make_once(name, make, is_file=True)

    def make_once(self, name: str, make: Callable[[Path], None], *, is_file: bool = False) -> Path:
        """Returns a file or folder, after making it under a temporary name if it is missing."""
        path = self.folder / name
        if not path.exists():
            self.say(f"making {name}")
            output = replace_file(path) if is_file else make_folder(path, overwrite=False)
            with output as temporary:
                make(temporary)
        return path

    def run(
        self, command: Sequence[str], name: str, variables: dict[str, str] | None = None
    ) -> None:
        """Runs a command with its output in a log.

        Raises:
            PeerError: it failed; the message has its last line and the path of the log.
        """
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(variables or {})},
            ).returncode
        if code != 0:
            raise PeerError(f"{read_last_line(log)} (exit code {code}, log: {log})")


def read_last_line(log: Path) -> str:
    """Reads the last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
