"""The command line's look into a bundle: `medusa-trt inspect BUNDLE`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.errors import MedusaError

if TYPE_CHECKING:
    from medusa_trt.export.inspection import Gpu, GraphFacts
    from medusa_trt.runtime.bundle import Bundle

_COLUMNS_OF_FILES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `inspect`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument(
        "--gpu", metavar="NAME", help="estimate for this GPU: h100, a100-80gb, l4, rtx-4090, ..."
    )
    parser.add_argument("--tensors", action="store_true", help="list inputs and outputs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> None:
    """Prints what a bundle holds; its hashes are checked first.

    Raises:
        MedusaError: it is no bundle, it is damaged, or the GPU is unknown.
    """
    try:
        from medusa_trt.export.inspection import gpu_from_name, graph_facts
    except ImportError as error:
        raise MedusaError(
            f"inspecting graphs needs {error.name}: pip install 'medusa-trt[export]'"
        ) from error
    from medusa_trt.runtime.bundle import Bundle

    gpu = None if arguments.gpu is None else gpu_from_name(arguments.gpu)
    bundle = Bundle.open(arguments.bundle)
    facts = {graph: graph_facts(bundle, graph) for graph in bundle.manifest.graphs}
    estimates = _estimates(bundle, facts, gpu)
    if arguments.json:
        print(json.dumps(_as_json(bundle, facts, estimates), indent=2))
    else:
        _print_tables(bundle, facts, estimates, arguments.tensors)


def _estimates(
    bundle: "Bundle", facts: dict[str, "GraphFacts"], gpu: "Gpu | None"
) -> dict[str, float]:
    """Bytes, and of a GPU the upper bounds that its bandwidth sets."""
    from medusa_trt.export.inspection import steps_per_s

    model = bundle.manifest.model
    weights = bundle.manifest.files["weights.data"].size_bytes
    cache = bundle.cache_bytes(model.max_length + bundle.tree.num_nodes)
    estimates: dict[str, float] = {
        "weights_bytes": weights,
        "kv_cache_bytes": cache,
        "total_bytes": weights + cache,
        "read_bytes_per_step": facts["verify"].read_bytes,
        "read_bytes_per_draft": facts["heads"].read_bytes,
    }
    if gpu is not None:
        plain, drafts = facts["verify"].read_bytes, facts["heads"].read_bytes
        estimates["plain_tokens_per_s"] = steps_per_s(plain, gpu)
        estimates["medusa_steps_per_s"] = steps_per_s(plain + drafts, gpu)
        estimates["fits_memory"] = float(weights + cache <= gpu.memory_gb * 1e9)
    return estimates


def _as_json(
    bundle: "Bundle", facts: dict[str, "GraphFacts"], estimates: dict[str, float]
) -> dict[str, object]:
    manifest = json.loads(bundle.manifest.to_json())
    return {
        "path": str(bundle.path),
        "manifest": manifest,
        "tree": [list(path) for path in bundle.tree.medusa_choices],
        "graphs": {
            name: {"operators": each.operators, "weight_bytes": each.precisions}
            for name, each in facts.items()
        },
        "estimates": estimates,
    }


def _print_tables(
    bundle: "Bundle",
    facts: dict[str, "GraphFacts"],
    estimates: dict[str, float],
    with_tensors: bool,
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medusa_trt.export.inspection import tree_lines

    console = Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_FILES, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(bundle, estimates):
        table.add_row(name, escape(value))
    console.print(table)
    console.print()
    graphs = Table("graph", "nodes", "weights", "most frequent operators", box=None, pad_edge=False)
    for name, each in facts.items():
        frequent = [f"{count} {kind}" for kind, count in each.operators.most_common(4)]
        weights = [f"{kind} {_size(size)}" for kind, size in each.precisions.most_common(3)]
        graphs.add_row(
            name, str(each.operators.total()), ", ".join(weights) or "-", ", ".join(frequent)
        )
    console.print(graphs)
    if with_tensors:
        console.print()
        for name, spec in bundle.manifest.graphs.items():
            for kind, tensors in (("in", spec.inputs), ("out", spec.outputs)):
                for tensor in tensors:
                    console.print(
                        escape(f"{name:<13} {kind:<3} {tensor.name} {tensor.dtype} {tensor.shape}")
                    )
    console.print()
    console.print("\n".join(tree_lines(bundle)))


def _rows(bundle: "Bundle", estimates: dict[str, float]) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    model, heads, target, tree = manifest.model, manifest.heads, manifest.target, bundle.tree
    rows = [
        ("bundle", f"{bundle.path}, {_size(sum(f.size_bytes for f in manifest.files.values()))}"),
        ("model", f"{model.name} ({model.architecture}), {model.num_layers} layers, hidden size "
         f"{model.hidden_size:,}, {model.vocab_size:,} tokens"),
        ("heads", f"{heads.num_heads}, {heads.num_layers} layers each, "
         f"{heads.draft_vocab_size:,} tokens"),
        ("target", f"{target.name}, {target.precision}, opset {target.opset}, cache "
         f"{target.cache_dtype}"),
        ("longest", f"{model.max_length:,} tokens"),
        ("tree", f"{manifest.tree_name}: {tree.num_nodes} nodes, {tree.max_depth} deep"),
        ("memory", f"{_size(estimates['weights_bytes'])} weights + "
         f"{_size(estimates['kv_cache_bytes'])} KV cache = {_size(estimates['total_bytes'])} for "
         "one sequence of the longest length"),
        ("read a step", f"{_size(estimates['read_bytes_per_step'])} by verify, "
         f"{_size(estimates['read_bytes_per_draft'])} by the heads"),
    ]  # fmt: skip
    if "plain_tokens_per_s" in estimates:
        fits = "fits its memory" if estimates["fits_memory"] else "does not fit its memory"
        rows.append(
            ("on the GPU", f"at most {estimates['plain_tokens_per_s']:.0f} tokens/s plain and "
             f"{estimates['medusa_steps_per_s']:.0f} Medusa steps/s, by bandwidth alone; {fits}")
        )  # fmt: skip
    rows += [
        (f"verified {where}", f"argmax {found.argmax_agreement:.1%}, KL {found.kl_divergence:.1e}, "
         f"largest difference {found.max_logit_difference:.1e}")
        for where, found in manifest.verified.items()
    ]  # fmt: skip
    return rows


def _size(size_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"
