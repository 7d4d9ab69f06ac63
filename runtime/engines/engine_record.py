"""What `medusa-trt build` writes beside its engines, and what a machine must have to load them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from medusa_trt.errors import EngineError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle, sha256_from_file
from medusa_trt.runtime.manifest import TensorSpec

ENGINES_FOLDER = "engines"
RECORD_FILE = "engines.json"
TREE_PROFILE = "tree"
PREFILL_PROFILE = "prefill"
PREFILL_ENGINE = "prefill"
"""Made where the verify engine holds a tree: the verify graph for everything else."""

WEIGHTLESS_ENGINES = ("reduce",)
"""Nothing in them is streamed, stripped or replaced."""

_LEAST_COMPATIBLE = (8, 0)
"""Compute capability from which on hardware-compatible engines run."""

_NEEDED_ENGINES = ("verify", "heads", "reduce")

Product = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module of each product."""


class ShapeRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes of one input that a profile allows, and the one it is tuned for."""

    min: list[int]
    opt: list[int]
    max: list[int]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An optimization profile: the inputs of free shape."""

    name: str
    inputs: dict[str, ShapeRange]


class EngineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine. `graph_sha256` is of the ONNX file that it was built from."""

    file: str
    size_bytes: int
    sha256: str
    graph_sha256: str
    profiles: list[Profile]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    @property
    def max_nodes(self) -> list[int]:
        """Of a step with each of the profiles, for an engine that takes token ids."""
        return [profile.inputs[names.INPUT_IDS].max[1] for profile in self.profiles]


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `engines.json`.

    Attributes:
        product: whose engines they are.
        version: of the product that built them.
        compute_capabilities: of the GPUs that they were built for, as "8.6".
        any_version: whether a later version may load them.
        any_hardware: whether any compute capability from 8.0 on may.
        refittable: whether their weights can be replaced.
        stripped: whether they come without weights, which the ONNX files then supply.
        weight_streaming: whether weights may stay in host memory.
        capacity: rows of a KV cache slot.
        max_batch_size: sequences of one step.
        weights_sha256: of the bundle's weights file.
        options: what the build was asked for, for the reader.
        engines: "verify", "heads" and "reduce"; and "prefill" beside a verify engine that holds a
            tree.
        medusa_choices: that tree, None where any can be given.
    """

    product: Product
    version: str
    compute_capabilities: list[str]
    any_version: bool
    any_hardware: bool
    refittable: bool
    stripped: bool
    weight_streaming: bool
    capacity: int
    max_batch_size: int
    weights_sha256: str
    options: dict[str, int | bool | str | None]
    engines: dict[str, EngineFile]
    medusa_choices: list[list[int]] | None = None

    @property
    def most_nodes(self) -> int:
        """Of any step, such as one of prefill."""
        return max(self.engines.get(PREFILL_ENGINE, self.engines["verify"]).max_nodes)


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether an engine runs: TensorRT's version and the GPU's capability ("8.6")."""

    product: Product
    version: str
    compute_capability: str


def record_from_folder(folder: Path) -> EngineRecord:
    """Reads a folder of engines.

    Raises:
        EngineError: there are none, or the record is damaged.
    """
    path = folder / RECORD_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except OSError as error:
        raise EngineError(
            f"{folder} holds no engines ({error.strerror}): make them with medusa-trt build"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} is damaged ({error}): build the engines again") from error


def graph_of_engine(name: str) -> str:
    """The graph that an engine was built from."""
    return "verify" if name == PREFILL_ENGINE else name


def engine_folders(bundle: Bundle) -> list[Path]:
    """The folders of engines that a bundle has."""
    return sorted(path.parent for path in (bundle.path / ENGINES_FOLDER).glob(f"*/{RECORD_FILE}"))


def mismatches(record: EngineRecord, machine: Machine) -> list[str]:
    """What keeps these engines from running on a machine, a phrase each; empty if nothing does."""
    found = []
    if record.product != machine.product:
        found.append(f"they are of {record.product}, this is {machine.product}")
    later = _numbers(machine.version) >= _numbers(record.version)
    if machine.version != record.version and not (record.any_version and later):
        found.append(f"built with version {record.version}, installed is {machine.version}")
    own = record.compute_capabilities
    compatible = record.any_hardware and _numbers(machine.compute_capability) >= _LEAST_COMPATIBLE
    if machine.compute_capability not in own and not compatible:
        found.append(
            f"built for compute capability {', '.join(own)}, "
            f"this GPU has {machine.compute_capability}"
        )
    return found


def check_engines(record: EngineRecord, folder: Path, bundle: Bundle) -> None:
    """Checks that engines are whole and of this bundle.

    Raises:
        EngineError: a file is missing or changed, or the bundle was exported again since.
    """
    for name in _NEEDED_ENGINES:
        if name not in record.engines:
            raise EngineError(f"{folder} has no {name} engine: build the engines again")
    files = bundle.manifest.files
    if files[names.WEIGHTS_FILE].sha256 != record.weights_sha256:
        raise EngineError(
            f"the engines in {folder} were built from other weights than the bundle's: build the "
            "engines again"
        )
    for name, engine in record.engines.items():
        path = folder / engine.file
        if not path.is_file() or path.stat().st_size != engine.size_bytes:
            raise EngineError(f"{path} is missing or truncated: build the engines again")
        if sha256_from_file(path) != engine.sha256:
            raise EngineError(f"{path} does not match its SHA-256: build the engines again")
        if files[bundle.manifest.graphs[graph_of_engine(name)].file].sha256 != engine.graph_sha256:
            raise EngineError(
                f"{path} was built from another {name} graph than the bundle's: "
                "build the engines again"
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
