"""The bundle: a folder with the graphs, the weights, the tree, the tokenizer and a manifest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medusa_trt.errors import BundleError
from medusa_trt.runtime.external_data import check_external_data
from medusa_trt.runtime.tensors import (
    CACHE_POSITIONS,
    DRAFT_IDS,
    GENERATION_CONFIG_FILE,
    GRAPH_FILES,
    HIDDEN,
    LOGITS,
    MANIFEST_FILE,
    PAST,
    ROOT_IDS,
    TOKENIZER_FILE,
    TREE_FILE,
    WEIGHTS_FILE,
    past_name,
)
from medusa_trt.tree_configs import MedusaTree

FORMAT_VERSION = 1

CACHE_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Byte size of one cache element, by ONNX type."""

_HASHED_BYTES = 1 << 20
_NEEDED_FILES = (WEIGHTS_FILE, TREE_FILE, TOKENIZER_FILE, GENERATION_CONFIG_FILE)

Count = Annotated[int, msgspec.Meta(ge=1)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A graph input or output. A dimension is a size or the name of a free dimension."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX file and its interface."""

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the runtime must know of the backbone. `max_length` counts positions."""

    name: str
    architecture: str
    num_layers: Count
    hidden_size: Count
    vocab_size: Count
    num_kv_heads: Count
    head_dim: Count
    max_length: Count
    eos_token_ids: list[int]


class HeadsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Medusa heads: how many there are, and how many candidates each offers."""

    num_heads: Count
    num_layers: Count
    top_k: Count
    draft_vocab_size: Count


class TargetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the graphs were made for.

    `min_rows` is the smallest number of nodes for which a step uses the same kernels as a tree
    does; plain decoding pads to it, so that its tokens equal Medusa's. `operator_library` says
    whether the graphs use the operators of `runtime/engines/operators.py`. `cache_in_place` says
    whether the verify graph's cache outputs may be bound to the memory of its cache inputs.
    """

    name: str
    precision: str
    opset: int
    cache_dtype: Literal["float32", "float16", "bfloat16"]
    min_rows: Count
    prefill_chunk: Count
    operator_library: bool
    cache_in_place: bool = True


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bundle against the Hugging Face model.

    Attributes:
        num_positions: positions compared.
        max_logit_difference: the largest.
        relative_error: root mean square of the logits' differences over that of the logits
            themselves, each position's mean taken off.
        argmax_agreement: share of positions with the same argmax.
        kl_divergence: mean of KL(model, bundle), nats.
    """

    num_positions: int
    max_logit_difference: float
    relative_error: float
    argmax_agreement: float
    kl_divergence: float


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and hash of one file of the bundle."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `manifest.json`."""

    format_version: int
    model: ModelSpec
    heads: HeadsSpec
    target: TargetSpec
    tree_name: str
    graphs: dict[str, GraphSpec]
    verified: dict[str, Agreement]
    versions: dict[str, str]
    files: dict[str, FileSpec]

    @property
    def heads_read_root(self) -> bool:
        """Whether the heads graph takes the root's token besides the hidden state."""
        return any(spec.name == ROOT_IDS for spec in self.graphs["heads"].inputs)

    def to_json(self) -> bytes:
        """The manifest as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


class _Versioned(msgspec.Struct):
    format_version: int


def manifest_from_json(data: bytes, source: str) -> Manifest:
    """Reads a manifest.

    Args:
        data: the JSON text.
        source: what to call it in an error.

    Raises:
        BundleError: not JSON, another format version, or a missing, unknown or mistyped field.
    """
    try:
        found = msgspec.json.decode(data, type=_Versioned).format_version
        if found != FORMAT_VERSION:
            raise BundleError(
                f"{source} has format version {found}, this release reads {FORMAT_VERSION}: "
                "export the model again"
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{source} is damaged ({error}): export the model again") from error


def sha256_from_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder, its manifest and its tree."""

    path: Path
    manifest: Manifest
    tree: MedusaTree

    @classmethod
    def open(cls, path: str | Path, *, check_hashes: bool = True) -> "Bundle":
        """Opens a bundle and checks that it is whole.

        Args:
            path: the bundle's folder.
            check_hashes: compare every file's SHA-256 with the manifest; sizes are always compared.

        Raises:
            BundleError: no bundle there, or a file is missing, truncated or changed.
            TreeError: its tree is malformed, or asks for more than its heads offer.
        """
        folder = Path(path)
        manifest_path = folder / MANIFEST_FILE
        try:
            if not manifest_path.is_file():
                raise BundleError(
                    f"{folder} is not a bundle: it has no {MANIFEST_FILE}; make one with "
                    "medusa-export"
                )
            manifest = manifest_from_json(manifest_path.read_bytes(), str(manifest_path))
            for name, spec in manifest.files.items():
                _check_file(folder, name, spec, check_hashes)
            _check_complete(manifest, manifest_path)
            _check_sizes(manifest, manifest_path)
            for graph in manifest.graphs.values():
                check_external_data(folder / graph.file, WEIGHTS_FILE)
        except OSError as error:
            raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
        tree = MedusaTree.load(folder / TREE_FILE, name=manifest.tree_name)
        tree.check(manifest.heads.num_heads, manifest.heads.top_k)
        return cls(folder, manifest, tree)

    def graph_path(self, graph: str) -> Path:
        """Path of a graph's ONNX file; `graph` is a key of `GRAPH_FILES`."""
        return self.path / self.manifest.graphs[graph].file

    def cache_bytes(self, num_tokens: int) -> int:
        """Size of the keys and values of so many tokens."""
        model = self.manifest.model
        item = CACHE_ITEM_BYTES[self.manifest.target.cache_dtype]
        return 2 * model.num_layers * model.num_kv_heads * model.head_dim * num_tokens * item

    def read_optional(self, name: str) -> str | None:
        """Text of a listed file, or None where the bundle has no such file.

        Raises:
            BundleError: the file is not UTF-8.
        """
        if name not in self.manifest.files:
            return None
        path = self.path / name
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} is damaged ({error}): export the model again") from error


def _needed_graphs(manifest: Manifest) -> list[str]:
    """All of them; no batch form where the verify graph takes any number of sequences."""
    verify = manifest.graphs.get("verify")
    reads_positions = verify is not None and CACHE_POSITIONS in {t.name for t in verify.inputs}
    if manifest.target.operator_library or reads_positions:
        return [name for name in GRAPH_FILES if name != "verify_batch"]
    return list(GRAPH_FILES)


def _check_complete(manifest: Manifest, source: Path) -> None:
    """Checks that the manifest lists what a bundle needs, and that graphs are listed files."""
    for name in _NEEDED_FILES:
        if name not in manifest.files:
            raise BundleError(f"{source} does not list {name}: export the model again")
    for graph in {**dict.fromkeys(_needed_graphs(manifest)), **manifest.graphs}:
        file = manifest.graphs[graph].file if graph in manifest.graphs else None
        # Listed files were checked, and only they are sure to lie in the bundle.
        if file not in manifest.files:
            raise BundleError(
                f"{source} lists no file for its {graph} graph: export the model again"
            )


def _check_sizes(manifest: Manifest, source: Path) -> None:
    """Checks that the sizes, for which memory is taken, are those of the graphs' tensors."""
    model, heads = manifest.model, manifest.heads
    verify, drafts = manifest.graphs["verify"], manifest.graphs["heads"]
    shapes = {spec.name: spec.shape for spec in (*verify.inputs, *verify.outputs, *drafts.outputs)}
    num_layers = sum(name.startswith(PAST) for name in shapes) // 2
    found: list[tuple[str, int, int | str | None]] = [("num_layers", model.num_layers, num_layers)]
    for name, size, tensor, axis in (
        ("num_kv_heads", model.num_kv_heads, past_name(0, "key"), 1),
        ("head_dim", model.head_dim, past_name(0, "key"), 3),
        ("hidden_size", model.hidden_size, HIDDEN, 1),
        ("vocab_size", model.vocab_size, LOGITS, 1),
        ("num_heads", heads.num_heads, DRAFT_IDS, 1),
        ("top_k", heads.top_k, DRAFT_IDS, 2),
    ):
        shape = shapes.get(tensor, [])
        found.append((name, size, shape[axis] if axis < len(shape) else None))
    for name, size, of_graph in found:
        if of_graph != size:
            raise BundleError(
                f"{source} has another {name} than its graphs ({size}, not {of_graph}): export "
                "the model again"
            )


def _check_file(folder: Path, name: str, spec: FileSpec, check_hash: bool) -> None:
    if Path(name).name != name or name in ("", ".."):
        raise BundleError(f"{folder} lists the file {name!r}: a path may not leave the bundle")
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{folder} lacks {name}: copy the bundle again or export it again")
    size_bytes = path.stat().st_size
    if size_bytes != spec.size_bytes:
        raise BundleError(
            f"{path} has {size_bytes} bytes, the manifest says {spec.size_bytes}: "
            "copy the bundle again or export it again"
        )
    if check_hash and sha256_from_file(path) != spec.sha256:
        raise BundleError(
            f"{path} does not match its SHA-256 in the manifest: "
            "copy the bundle again or export it again"
        )
