"""The network that TensorRT's parser makes of a graph."""

from support.built_engines import needs_rtx

from medusa_trt.export.tensorrt.job import EngineBuild
from medusa_trt.export.tensorrt.network import parse_network
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.export.tensorrt.products import PRODUCTS
from medusa_trt.runtime.bundle import Bundle


@needs_rtx
def test_attention_without_a_kernel_of_its_own_may_be_decomposed(trt_bundle: Bundle) -> None:
    product = PRODUCTS["tensorrt-rtx"]
    module = product.load()
    build = EngineBuild(trt_bundle, BuildOptions(), product, module, lambda _: None)
    builder = module.Builder(build.logger)
    spec = trt_bundle.manifest.graphs["verify"]
    network, parser = parse_network(build, builder, spec, is_merged=False)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [layer for layer in layers if layer.type == module.LayerType.ATTENTION_INPUT]
    assert len(found) == trt_bundle.manifest.model.num_layers
    for layer in found:
        layer.__class__ = module.IAttentionInputLayer
        assert layer.attention.decomposable
    del parser
