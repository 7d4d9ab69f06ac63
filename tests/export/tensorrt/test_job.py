"""Which builds are refused before they begin."""

import msgspec
import pytest
from support.built_engines import needs_rtx

from medusa_trt.errors import BuildError
from medusa_trt.export.tensorrt.build import build_engines
from medusa_trt.export.tensorrt.job import find_product
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.runtime.bundle import Bundle


@needs_rtx
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "ort-cpu"}, "no engines are built for ort-cpu"),
        ({"target": "tensorrt-jetson"}, "export the model with --target tensorrt-jetson"),
        ({"compute_capabilities": ("9.0",)}, "does not build for compute capability 9.0: choose"),
        ({"hardware_compatible": True}, "has no --hardware-compatible: name each"),
        ({"version_compatible": True}, "has no --version-compatible: build again"),
        ({"max_length": 4000}, "max_length is 4000, the bundle allows 320"),
    ],
)
def test_what_cannot_be_built_is_refused(
    trt_bundle: Bundle, changes: dict[str, object], message: str
) -> None:
    before = sorted(trt_bundle.path.rglob("*"))
    values: dict[str, object] = {"target": "tensorrt-rtx", "compute_capabilities": ("8.6",)}
    with pytest.raises(BuildError, match=message):
        build_engines(trt_bundle, BuildOptions(**(values | changes)), lambda _: None)  # type: ignore[arg-type]
    assert sorted(trt_bundle.path.rglob("*")) == before


def test_a_bundle_that_reduces_in_float64_is_refused(trt_bundle: Bundle) -> None:
    manifest = trt_bundle.manifest
    reduce = manifest.graphs["reduce"]
    inputs = [
        msgspec.structs.replace(tensor, dtype="double") if tensor.name == "uniforms" else tensor
        for tensor in reduce.inputs
    ]
    graphs = manifest.graphs | {"reduce": msgspec.structs.replace(reduce, inputs=inputs)}
    manifest = msgspec.structs.replace(manifest, graphs=graphs)
    with pytest.raises(BuildError, match="float64, which TensorRT lacks: export the model again"):
        find_product(Bundle(trt_bundle.path, manifest, trt_bundle.tree), BuildOptions())


def test_a_bundle_of_another_target_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(BuildError, match="no engines are built for ort-cpu: choose tensorrt"):
        find_product(tiny_bundle, BuildOptions())
    with pytest.raises(BuildError, match="was exported for ort-cpu: export the model with --targ"):
        find_product(tiny_bundle, BuildOptions(target="tensorrt"))
