"""The manifest of an exported bundle."""

from importlib.metadata import version
from pathlib import Path

from medusa_trt.export.graphs.verify_module import cache_shape_from_model
from medusa_trt.export.preparation import ExportParts
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import sha256_from_file
from medusa_trt.runtime.manifest import (
    FORMAT_VERSION,
    FileSpec,
    GraphSpec,
    HeadsSpec,
    Manifest,
    ModelSpec,
    TargetSpec,
)

_RECORDED_VERSIONS = ("medusa-trt", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")


def make_manifest(parts: ExportParts, graphs: dict[str, GraphSpec]) -> Manifest:
    """Makes the manifest of a bundle whose files are not finished yet.

    `graphs` are those that are written, by their names in `GRAPH_FILES`.
    """
    base, target, precision, form = parts.base, parts.target, parts.precision, parts.forms["verify"]
    config = base.model.config
    cache = cache_shape_from_model(base.model, parts.max_length)
    return Manifest(
        format_version=FORMAT_VERSION,
        model=ModelSpec(
            name=base.source.name,
            architecture=config.model_type,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            num_kv_heads=cache.num_kv_heads,
            head_dim=cache.head_dim,
            max_length=parts.max_length,
            eos_token_ids=base.eos_token_ids,
        ),
        heads=None
        if parts.heads is None
        else HeadsSpec(
            num_heads=parts.heads.num_heads,
            num_layers=parts.heads.num_layers,
            top_k=parts.top_k,
            draft_vocab_size=parts.heads.draft_vocab_size(config.vocab_size),
        ),
        target=TargetSpec(
            name=target.name,
            precision=precision.name,
            opset=target.opset,
            cache_dtype=form.cache_dtype or precision.dtype,
            cache_in_place=form.updates_in_place,
            min_rows=parts.min_rows,
            operator_library=precision.uses_library,
            prefill_chunk=target.prefill_chunk,
        ),
        tree_name=parts.tree.name,
        graphs=graphs,
        verified={},
        versions={name: version(name) for name in _RECORDED_VERSIONS},
        files={},
    )


def list_files(folder: Path) -> dict[str, FileSpec]:
    """Lists the files of a bundle with their sizes and hashes."""
    return {
        path.name: FileSpec(path.stat().st_size, sha256_from_file(path))
        for path in sorted(folder.iterdir())
        if path.name != names.MANIFEST_FILE
    }
