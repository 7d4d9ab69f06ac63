"""The record that `medusa-trt build` writes beside its engines, and its checks before loading."""

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
"""Engine of the verify graph for other trees, where the verify engine has a tree merged into it."""

WEIGHTLESS_ENGINES = ("reduce",)
"""Engines without weights, so no weight is streamed, stripped or replaced."""

_LEAST_COMPATIBLE = (8, 0)
"""Lowest compute capability on which hardware-compatible engines run."""

_NEEDED_ENGINES = ("verify", "heads", "reduce")

Product = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module of each product."""


class ShapeRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Smallest and largest shape of one input in a profile, and the shape it is tuned for."""

    min: list[int]
    opt: list[int]
    max: list[int]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An optimization profile, with the inputs whose shape is not fixed."""

    name: str
    inputs: dict[str, ShapeRange]


class EngineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine file. `graph_sha256` is the hash of the ONNX file that it was built from."""

    file: str
    size_bytes: int
    sha256: str
    graph_sha256: str
    profiles: list[Profile]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    @property
    def max_nodes(self) -> list[int]:
        """Largest number of nodes in a step, by profile; for an engine that takes token ids."""
        return [profile.inputs[names.INPUT_IDS].max[1] for profile in self.profiles]


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `engines.json`.

    Attributes:
        product: the product that built the engines and runs them.
        version: version of the product that built the engines.
        compute_capabilities: those of the GPUs that the engines were built for, as "8.6".
        any_version: whether later versions can load the engines.
        any_hardware: whether every compute capability from 8.0 on can run them.
        refittable: whether their weights can be replaced.
        stripped: whether the files have no weights; they are then loaded from the ONNX files.
        weight_streaming: whether weights may stay in host memory.
        capacity: number of rows in a KV cache slot.
        max_batch_size: largest number of sequences in one step.
        weights_sha256: hash of the bundle's weights file.
        options: options of the build, as information for people.
        engines: "verify" and "reduce", "heads" where there are heads; also "prefill" if a tree is
            merged into the verify engine.
        medusa_choices: the merged tree; None if the verify engine takes any tree.
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
    def max_nodes(self) -> int:
        """Largest number of nodes in a step, which is one of prefill."""
        return max(self.engines.get(PREFILL_ENGINE, self.engines["verify"]).max_nodes)


@dataclass(frozen=True, slots=True)
class Machine:
    """Installed product and version, and the GPU's compute capability, as "8.6"."""

    product: Product
    version: str
    compute_capability: str


def record_from_folder(folder: Path) -> EngineRecord:
    """Reads the record in a folder of engines.

    Raises:
        EngineError: the folder has no record, or the record is damaged.
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


def find_graph_of_engine(name: str) -> str:
    """Name of the graph that an engine was built from."""
    return "verify" if name == PREFILL_ENGINE else name


def list_engine_folders(bundle: Bundle) -> list[Path]:
    """Lists the folders of engines in a bundle."""
    return sorted(path.parent for path in (bundle.path / ENGINES_FOLDER).glob(f"*/{RECORD_FILE}"))


def find_mismatches(record: EngineRecord, machine: Machine) -> list[str]:
    """Finds the reasons why engines cannot run on a machine; an empty list if they can run."""
    reasons = []
    if record.product != machine.product:
        reasons.append(f"built for {record.product}, not for {machine.product}")
    is_later = _version_numbers(machine.version) >= _version_numbers(record.version)
    if machine.version != record.version and not (record.any_version and is_later):
        reasons.append(f"built with version {record.version}, installed is {machine.version}")
    capabilities = record.compute_capabilities
    is_compatible = (
        record.any_hardware and _version_numbers(machine.compute_capability) >= _LEAST_COMPATIBLE
    )
    if machine.compute_capability not in capabilities and not is_compatible:
        reasons.append(
            f"built for compute capability {', '.join(capabilities)}, "
            f"this GPU has {machine.compute_capability}"
        )
    return reasons


def check_engines(record: EngineRecord, folder: Path, bundle: Bundle) -> None:
    """Checks that engines are complete and were built from this bundle.

    Raises:
        EngineError: a file is missing or changed, or the bundle was exported again later.
    """
    for name in _NEEDED_ENGINES:
        if name in bundle.manifest.graphs and name not in record.engines:
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
        graph_file = bundle.manifest.graphs[find_graph_of_engine(name)].file
        if files[graph_file].sha256 != engine.graph_sha256:
            raise EngineError(
                f"{path} was built from another {name} graph than the bundle's: "
                "build the engines again"
            )


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
