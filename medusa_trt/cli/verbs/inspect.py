"""`medusa-trt inspect`: what a bundle holds, and what it needs to run."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from medusa_trt.cli.arguments import BundleArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.errors import require_extra
from medusa_trt.files import text_from_bytes

if TYPE_CHECKING:
    from rich.tree import Tree

    from medusa_trt.export.inspection import Gpu, GraphFacts
    from medusa_trt.runtime.bundle import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectArguments(BundleArguments):
    """Show the model, the graphs and the tree of a bundle, and the memory that it needs.

    Attributes:
        gpu: also estimate the speed on this GPU: h100, a100-80gb, l4, rtx-4090 and others (default:
            no estimate).
        tensors: also list the inputs and outputs of each graph.
        json: print JSON instead of tables.
    """

    gpu: Annotated[str | None, "--gpu NAME"] = None
    tensors: bool = False
    json: bool = False


def inspect(arguments: InspectArguments) -> None:
    """Checks the hashes of a bundle, and prints what the bundle holds."""
    with require_extra("inspecting graphs", "export"):
        from medusa_trt.export.inspection import gpu_from_name, read_graph_facts
    from medusa_trt.runtime.bundle import Bundle

    gpu = None if arguments.gpu is None else gpu_from_name(arguments.gpu)
    bundle = Bundle.open(arguments.bundle)
    facts = {graph: read_graph_facts(bundle, graph) for graph in bundle.manifest.graphs}
    estimates = _estimate_sizes(bundle, facts, gpu)
    if arguments.json:
        print(json.dumps(_json_from_bundle(bundle, facts, estimates), indent=2))
    else:
        _print_tables(bundle, facts, estimates, arguments.tensors)


def _estimate_sizes(
    bundle: "Bundle", facts: dict[str, "GraphFacts"], gpu: "Gpu | None"
) -> dict[str, float]:
    """Sizes in bytes, and the highest speeds that the bandwidth of a GPU allows."""
    model = bundle.manifest.model
    weights = bundle.manifest.files["weights.data"].size_bytes
    cache = bundle.count_cache_bytes(model.max_length + bundle.tree.num_nodes)
    plain = facts["verify"].read_bytes
    drafts = facts["heads"].read_bytes if "heads" in facts else 0
    estimates: dict[str, float] = {
        "weights_bytes": weights,
        "kv_cache_bytes": cache,
        "total_bytes": weights + cache,
        "read_bytes_per_step": plain,
        "read_bytes_per_draft": drafts,
    }
    if gpu is not None:
        estimates["plain_tokens_per_s"] = gpu.compute_max_steps_per_s(plain)
        estimates["medusa_steps_per_s"] = gpu.compute_max_steps_per_s(plain + drafts)
        estimates["fits_memory"] = float(weights + cache <= gpu.memory_gb * 1e9)
    return estimates


def _json_from_bundle(
    bundle: "Bundle", facts: dict[str, "GraphFacts"], estimates: dict[str, float]
) -> dict[str, object]:
    manifest = json.loads(bundle.manifest.to_json())
    return {
        "path": str(bundle.path),
        "manifest": manifest,
        "tree": [list(path) for path in bundle.tree.medusa_choices],
        "graphs": {
            name: {"operators": graph.operators, "weight_bytes": graph.precisions}
            for name, graph in facts.items()
        },
        "estimates": estimates,
    }


def _print_tables(
    bundle: "Bundle",
    facts: dict[str, "GraphFacts"],
    estimates: dict[str, float],
    with_tensors: bool,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = make_table_console()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows_from_bundle(bundle, estimates):
        table.add_row(name, escape(value))
    console.print(table)
    console.print()
    graphs = Table("graph", "nodes", "weights", "most frequent operators", box=None, pad_edge=False)
    for name, graph in facts.items():
        frequent = [f"{count} {kind}" for kind, count in graph.operators.most_common(4)]
        weights = [
            f"{kind} {text_from_bytes(size)}" for kind, size in graph.precisions.most_common(3)
        ]
        graphs.add_row(
            name, str(graph.operators.total()), ", ".join(weights) or "-", ", ".join(frequent)
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
    console.print(_draw_tree(bundle))


def _draw_tree(bundle: "Bundle") -> "Tree":
    """Draws the tree; each node names its head and its candidate.

    Without heads, prompt lookup copies the tokens of the tree, which is a chain.
    """
    from rich.tree import Tree

    tree = bundle.tree
    drawn = [Tree("root")]
    for path, parent in zip(tree.medusa_choices, tree.parents.tolist()[1:], strict=True):
        has_heads = bundle.manifest.heads is not None
        label = f"head {len(path)} #{path[-1] + 1}" if has_heads else f"copied token {len(path)}"
        drawn.append(drawn[parent].add(label))
    return drawn[0]


def _rows_from_bundle(bundle: "Bundle", estimates: dict[str, float]) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    model, heads, target, tree = manifest.model, manifest.heads, manifest.target, bundle.tree
    size_bytes = sum(file.size_bytes for file in manifest.files.values())
    rows = [
        ("bundle", f"{bundle.path}, {text_from_bytes(size_bytes)}"),
        ("model", f"{model.name} ({model.architecture}), {model.num_layers} layers, hidden size "
         f"{model.hidden_size:,}, {model.vocab_size:,} tokens"),
        ("heads", "none: drafts come from prompt lookup alone" if heads is None else
         f"{heads.num_heads}, {heads.num_layers} layers each, {heads.draft_vocab_size:,} tokens"),
        ("target", f"{target.name}, {target.precision}, opset {target.opset}, cache "
         f"{target.cache_dtype}"),
        ("longest", f"{model.max_length:,} tokens"),
        ("tree", f"{manifest.tree_name}: {tree.num_nodes} nodes, {tree.max_depth} deep"),
        ("typical", manifest.describe_typical() or "not calibrated"),
        ("memory", f"{text_from_bytes(estimates['weights_bytes'])} weights + "
         f"{text_from_bytes(estimates['kv_cache_bytes'])} KV cache = "
         f"{text_from_bytes(estimates['total_bytes'])} for one sequence of the longest length"),
        ("read a step", f"{text_from_bytes(estimates['read_bytes_per_step'])} by verify, "
         f"{text_from_bytes(estimates['read_bytes_per_draft'])} by the heads"),
    ]  # fmt: skip
    if "plain_tokens_per_s" in estimates:
        fits = "fits its memory" if estimates["fits_memory"] else "does not fit its memory"
        rows.append(
            ("on the GPU", f"at most {estimates['plain_tokens_per_s']:.0f} tokens/s plain and "
             f"{estimates['medusa_steps_per_s']:.0f} Medusa steps/s, by bandwidth alone; {fits}")
        )  # fmt: skip
    rows += [
        (f"verified {place}", f"argmax {test.argmax_agreement:.1%}, KL {test.kl_divergence:.1e}, "
         f"largest difference {test.max_logit_difference:.1e}")
        for place, test in manifest.verified.items()
    ]  # fmt: skip
    return rows


VERBS = {"inspect": Verb(InspectArguments, inspect)}
