"""Names of files and tensors, against those that exported bundles have."""

import onnx_ir as ir

from medusa_trt.runtime import tensors
from medusa_trt.runtime.bundle import Bundle

NAMES = {value for name, value in vars(tensors).items() if name.isupper() and name != "GRAPH_FILES"}
FILES = {value for value in NAMES if "." in value} - {tensors.PAST}


def read_tensor_names(bundle: Bundle) -> set[str]:
    """Names of the inputs and outputs of all graphs."""
    names: set[str] = set()
    for graph in bundle.manifest.graphs:
        loaded = ir.load(bundle.graph_path(graph)).graph
        names |= {value.name or "" for value in (*loaded.inputs, *loaded.outputs)}
    return names


def test_graphs_have_these_tensors_and_no_others(
    tiny_bundle: Bundle, cuda_bundle: Bundle, trt_bundle: Bundle, jetson_bundle: Bundle
) -> None:
    caches = {
        name(layer, kind)
        for layer in range(tiny_bundle.manifest.model.num_layers)
        for kind in ("key", "value")
        for name in (tensors.past_name, tensors.present_name)
    }
    bundles = (tiny_bundle, cuda_bundle, trt_bundle, jetson_bundle)
    # The heads of these bundles do not read the root token.
    expected = NAMES - FILES - {tensors.PAST, tensors.ROOT_IDS} | caches
    assert set().union(*map(read_tensor_names, bundles)) == expected


def test_bundles_have_these_files_and_no_others(tiny_bundle: Bundle, cuda_bundle: Bundle) -> None:
    names = {path.name for bundle in (tiny_bundle, cuda_bundle) for path in bundle.path.iterdir()}
    assert names == FILES | set(tensors.GRAPH_FILES.values())
