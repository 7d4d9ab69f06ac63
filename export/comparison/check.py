"""Comparison of a finished bundle with its model, in the memory that is there."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx_ir as ir

from medusa_trt.errors import ExportError
from medusa_trt.export.comparison.logits import NUM_TREE_NODES, compare_logits
from medusa_trt.export.comparison.passages import NUM_TOKENS, PASSAGES
from medusa_trt.export.comparison.segmented_engine import SegmentedEngine
from medusa_trt.export.graphs.graph_files import GraphWriter
from medusa_trt.export.modeling.rotary import fix_rotary
from medusa_trt.export.models.base_model import BaseModel, open_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.passes.widen_floats import WidenFloatsPass
from medusa_trt.export.weights.streamed_model import supply_weights
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.manifest import Agreement
from medusa_trt.runtime.tensors import WEIGHTS_FILE

MAX_WHOLE_BYTES = 1 << 30
"""Most weights of a bundle that is run as a whole; larger bundles are run in parts."""

_MAX_QUICK_BYTES = 2 << 30
"""Most weights of a bundle that is compared on all passages; larger ones take minutes for each."""

_SPARE_ROWS = 64
_LEAST_TEXT_TOKENS = 64
"""A tokenizer of few words makes fewer tokens of a passage, which is then repeated."""

_NUM_PASSAGES = {False: len(PASSAGES), True: 1}
_NUM_TREE_NODES = {False: NUM_TREE_NODES, True: 8}
"""Sizes by whether a pass over the model takes long."""


def check_bundle(path: Path, model: str) -> Iterator[str]:
    """Compares a bundle with its model and yields a line for each kind of input.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        ExportError: the model has other sizes, or the logits differ too much.
    """
    bundle = Bundle.open(path)
    base = open_base_model(source_from_name(model))
    check_same_sizes(bundle, base)
    for where, result in compare_bundle(bundle, base).items():
        yield describe_agreement(where, result)


def check_same_sizes(bundle: Bundle, base: BaseModel) -> None:
    """Refuses a model whose sizes differ from the bundle's.

    Raises:
        ExportError: a size differs.
    """
    spec, config = bundle.manifest.model, base.model.config
    for name, size, expected in (
        ("layers", spec.num_layers, config.num_hidden_layers),
        ("hidden size", spec.hidden_size, config.hidden_size),
        ("tokens", spec.vocab_size, config.vocab_size),
    ):
        if size != expected:
            raise ExportError(
                f"{bundle.path} has {size} {name}, {base.source.name} has {expected}: give the "
                "model it came from"
            )


def compare_bundle(
    bundle: Bundle,
    base: BaseModel,
    scratch: Path | None = None,
    batch_sizes: Sequence[int] = (1, 2),
) -> dict[str, Agreement]:
    """Compares one sequence, and two of different lengths, without a large model in memory.

    Args:
        bundle: the bundle; only its verify graphs and weights are read.
        base: its model.
        scratch: folder for a copy in float32, which a bundle in bfloat16 needs.
        batch_sizes: number of sequences: 1 compares "text" and "tree", 2 compares "batch".

    Raises:
        ExportError: the logits differ by more than the precision allows.
    """
    target = bundle.manifest.target
    agreements: dict[str, Agreement] = {}
    with TemporaryDirectory(dir=scratch) as folder:
        # ONNX Runtime cannot compute in bfloat16. The operator library only stores its cache in it.
        if target.cache_dtype == "bfloat16" and not target.operator_library:
            bundle = widen_bundle(bundle, Path(folder) / "float32")
        for batch_size in batch_sizes:
            agreements |= _compare_sequences(bundle, base, batch_size)
    return agreements


def widen_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Writes a bundle's graphs in float32 to a new folder; see `WidenFloatsPass`.

    Only an engine can use the result, because files besides the graphs are left out.
    """
    folder.mkdir()
    writer = GraphWriter(folder)
    for name, spec in bundle.manifest.graphs.items():
        graph = ir.load(bundle.path / spec.file)
        WidenFloatsPass()(graph)
        writer.save(name, graph)
    manifest = bundle.manifest
    target = msgspec.structs.replace(manifest.target, cache_dtype="float32")
    return Bundle(folder, msgspec.structs.replace(manifest, target=target), bundle.tree)


def _compare_sequences(bundle: Bundle, base: BaseModel, batch_size: int) -> dict[str, Agreement]:
    size_bytes = (bundle.path / WEIGHTS_FILE).stat().st_size
    engine_class = SegmentedEngine if size_bytes > MAX_WHOLE_BYTES else OrtEngine
    is_slow = size_bytes > _MAX_QUICK_BYTES
    passages = PASSAGES[: _NUM_PASSAGES[is_slow]]
    texts = [base.tokenizer.encode(passage) for passage in passages]
    texts = [(ids * -(-_LEAST_TEXT_TOKENS // len(ids)))[:NUM_TOKENS] for ids in texts]
    engine = engine_class(bundle, capacity=NUM_TOKENS + _SPARE_ROWS, batch_size=batch_size)
    try:
        with (
            fix_rotary(base.model, bundle.manifest.model.max_length),
            supply_weights(base.model, base.weights),
        ):
            return compare_logits(bundle, engine, base.model, texts, _NUM_TREE_NODES[is_slow])
    finally:
        engine.close()


def describe_agreement(where: str, result: Agreement) -> str:
    """Describes one comparison in a line."""
    return (
        f"{where}: argmax equal at {result.argmax_agreement:.1%} of {result.num_positions} "
        f"positions, KL {result.kl_divergence:.1e} nats, largest logit difference "
        f"{result.max_logit_difference:.1e}"
    )
