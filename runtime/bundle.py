"""The bundle: a folder with the graphs, the weights, the tree, the tokenizer and a manifest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from medusa_trt.errors import BundleError
from medusa_trt.runtime.external_data import check_external_data
from medusa_trt.runtime.manifest import CACHE_ITEM_BYTES, FileSpec, Manifest, manifest_from_json
from medusa_trt.runtime.tensors import (
    CACHE_POSITIONS,
    DRAFT_IDS,
    GENERATION_CONFIG_FILE,
    GRAPH_FILES,
    HIDDEN,
    LOGITS,
    MANIFEST_FILE,
    PAST,
    TOKENIZER_FILE,
    TREE_FILE,
    WEIGHTS_FILE,
    past_name,
)
from medusa_trt.tree_configs import MedusaTree
from medusa_trt.types_of_options import read_value

_HASHED_BYTES = 1 << 20
"""Bytes that are read at once to compute a hash."""

_NEEDED_FILES = (WEIGHTS_FILE, TREE_FILE, TOKENIZER_FILE, GENERATION_CONFIG_FILE)


def sha256_from_file(path: Path) -> str:
    """Computes the SHA-256 of a file, as hexadecimal digits."""
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
        """Opens a bundle and checks that it is complete.

        Args:
            path: the bundle's folder.
            check_hashes: whether to compare the SHA-256 of every file with the manifest; sizes are
                always compared.

        Raises:
            BundleError: the folder is not a bundle, or a file is missing, truncated or changed.
            TreeError: its tree is malformed, or needs more heads or candidates than there are.
        """
        folder = Path(read_value("bundle", path, str | Path, BundleError))
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
        manifest.check_tree(tree)
        return cls(folder, manifest, tree)

    @property
    def digest(self) -> str:
        """Digest of the files that measurements depend on: all but the tree."""
        files = self.manifest.files
        names = sorted(files.keys() - {TREE_FILE, GRAPH_FILES["tree"]})
        text = "".join(f"{name} {files[name].sha256}\n" for name in names)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def graph_path(self, graph: str) -> Path:
        """Path of a graph's ONNX file; `graph` is a key of `GRAPH_FILES`."""
        return self.path / self.manifest.graphs[graph].file

    def count_cache_bytes(self, num_tokens: int) -> int:
        """Size in bytes of the keys and values of `num_tokens` tokens."""
        model = self.manifest.model
        item_bytes = CACHE_ITEM_BYTES[self.manifest.target.cache_dtype]
        return 2 * model.num_layers * model.num_kv_heads * model.head_dim * num_tokens * item_bytes

    def read_optional(self, name: str) -> str | None:
        """Reads the text of a file; None if the bundle does not have this file.

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


def _list_needed_graphs(manifest: Manifest) -> list[str]:
    """Lists the graphs: no batch form if the verify graph takes any batch, heads if there are."""
    verify = manifest.graphs.get("verify")
    reads_positions = verify is not None and CACHE_POSITIONS in {t.name for t in verify.inputs}
    takes_batch = manifest.target.operator_library or reads_positions
    is_needed = {"verify_batch": not takes_batch, "heads": manifest.heads is not None}
    return [name for name in GRAPH_FILES if is_needed.get(name, True)]


def _check_complete(manifest: Manifest, source: Path) -> None:
    """Checks that the manifest lists the files that a bundle needs, those of its graphs too."""
    for name in _NEEDED_FILES:
        if name not in manifest.files:
            raise BundleError(f"{source} does not list {name}: export the model again")
    for graph in {**dict.fromkeys(_list_needed_graphs(manifest)), **manifest.graphs}:
        file = manifest.graphs[graph].file if graph in manifest.graphs else None
        # Only listed files were checked, and are known to lie in the bundle.
        if file not in manifest.files:
            raise BundleError(
                f"{source} lists no file for its {graph} graph: export the model again"
            )


def _check_sizes(manifest: Manifest, source: Path) -> None:
    """Checks that the model's sizes, used to allocate memory, equal those of the graphs."""
    model, heads, verify = manifest.model, manifest.heads, manifest.graphs["verify"]
    drafts = () if heads is None else manifest.graphs["heads"].outputs
    shapes = {spec.name: spec.shape for spec in (*verify.inputs, *verify.outputs, *drafts)}
    num_layers = sum(name.startswith(PAST) for name in shapes) // 2
    compared: list[tuple[str, int, int | str | None]] = [
        ("num_layers", model.num_layers, num_layers)
    ]
    sizes = [
        ("num_kv_heads", model.num_kv_heads, past_name(0, "key"), 1),
        ("head_dim", model.head_dim, past_name(0, "key"), 3),
        ("hidden_size", model.hidden_size, HIDDEN, 1),
        ("vocab_size", model.vocab_size, LOGITS, 1),
    ]
    if heads is not None:
        sizes += [
            ("num_heads", heads.num_heads, DRAFT_IDS, 1),
            ("top_k", heads.top_k, DRAFT_IDS, 2),
        ]
    for name, size, tensor, axis in sizes:
        shape = shapes.get(tensor, [])
        compared.append((name, size, shape[axis] if axis < len(shape) else None))
    for name, size, graph_size in compared:
        if graph_size != size:
            raise BundleError(
                f"{source} says {name} {size}, its graphs have {graph_size}: export the model again"
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
