"""The writing of a bundle: what is compared when, and what the manifest says in the end."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.bundle_writing import write_bundle
from medusa_trt.export.manifest import list_files
from medusa_trt.export.options import ExportOptions
from medusa_trt.export.preparation import ExportParts, parts_from_options
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import Agreement


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ExportParts:
    """A model of one layer without heads, whose batches have a graph of their own."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("models") / "one-layer", llama_config(num_hidden_layers=1)
    )
    options = ExportOptions(model=str(folder), heads="none", tree="chain-2", precision="fp32")
    return parts_from_options(options, lambda _: None)


def test_each_verify_graph_is_compared_as_soon_as_it_is_written(
    parts: ExportParts, tmp_path: Path
) -> None:
    seen: list[tuple[list[str], Sequence[int]]] = []

    def compare(bundle: Bundle, batch_sizes: Sequence[int]) -> dict[str, Agreement]:
        (name,) = bundle.manifest.graphs
        graphs = [graph for graph, file in names.GRAPH_FILES.items() if (tmp_path / file).is_file()]
        seen.append((graphs, batch_sizes))
        assert graphs[-1] == name and bundle.path == tmp_path
        return {name: Agreement(len(seen), 0.0, 0.0, 1.0, 0.0)}

    told: list[str] = []
    write_bundle(tmp_path, parts, told.append, compare)
    assert seen == [(["verify"], (1,)), (["verify", "verify_batch"], (2,))]
    written = [line for line in told if line.startswith("writing")]
    assert written == [f"writing the {name} graph and its weights" for name in parts.forms]
    bundle = Bundle.open(tmp_path)
    manifest = bundle.manifest
    assert [manifest.verified[name].num_positions for name in parts.forms] == [1, 2]
    assert set(manifest.graphs) == {"verify", "verify_batch", "reduce", "tree"}
    assert manifest.files == list_files(tmp_path) and names.WEIGHTS_FILE in manifest.files
    assert bundle.tree == parts.tree


def test_a_tokenizer_without_a_file_of_its_own_is_refused_before_the_long_work(
    parts: ExportParts, tmp_path: Path
) -> None:
    tokenizer: Any = SimpleNamespace(save_pretrained=lambda folder: None)
    other = replace(parts, base=replace(parts.base, tokenizer=tokenizer))
    told: list[str] = []
    with pytest.raises(ExportError, match=r"one-layer has no tokenizer\.json: convert its"):
        write_bundle(tmp_path, other, told.append, lambda *_: {})
    assert not told
