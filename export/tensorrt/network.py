"""A graph as TensorRT's builder takes it: the network, its profiles and its options."""

from typing import Any

import onnx_ir as ir

from medusa_trt.errors import BuildError
from medusa_trt.export.tensorrt.checks import describe_parser_error, set_capacity
from medusa_trt.export.tensorrt.job import EngineBuild, list_capabilities
from medusa_trt.export.tensorrt.tree import merge_tree
from medusa_trt.runtime.engines.engine_record import (
    PREFILL_PROFILE,
    TREE_PROFILE,
    Profile,
    ShapeRange,
)
from medusa_trt.runtime.manifest import GraphSpec

_FLAGS = {"version_compatible": "VERSION_COMPATIBLE"}
_WEIGHT_FLAGS = {
    "refittable": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
}


def parse_network(
    build: EngineBuild, builder: Any, spec: GraphSpec, is_merged: bool
) -> tuple[Any, Any]:
    """Parses a graph with its final cache length.

    Args:
        build: the build.
        builder: TensorRT's builder.
        spec: interface of the graph.
        is_merged: whether the bundle's tree becomes a constant of the graph.

    Returns:
        The network, and the parser, which owns the network's weights.

    Raises:
        BuildError: TensorRT refuses a node.
    """
    path = build.bundle.path / spec.file
    model = ir.load(path)
    if is_merged:
        merge_tree(model, ir.load(build.bundle.graph_path("tree")))
    sizes: dict[str, int | str] = {"capacity": build.capacity}
    if is_merged:
        sizes["num_nodes"] = build.bundle.tree.num_nodes
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([sizes.get(str(dim), dim) for dim in value.shape])
    network = builder.create_network(
        1 << int(build.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = build.module.OnnxParser(network, build.logger)
    parsed = parser.parse(ir.to_proto(model).SerializeToString(), str(path))
    if not parsed:
        raise BuildError(describe_parser_error(build.module, parser, spec.file))
    _allow_decomposition(build.module, network)
    return network, parser


def _allow_decomposition(module: Any, network: Any) -> None:
    """Lets TensorRT run attention as several kernels where it has no fused one.

    Otherwise it fails, for example with 512 dimensions a head, or with a single head
    (https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/_static/c-api/classnvinfer1_1_1_i_attention.html).
    """
    kind = getattr(module.LayerType, "ATTENTION_INPUT", None)  # from TensorRT 10.14 on
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            layer.__class__ = module.IAttentionInputLayer  # TensorRT returns the base class
            layer.attention.decomposable = True


def make_profiles(build: EngineBuild, name: str, spec: GraphSpec, is_merged: bool) -> list[Profile]:
    """Makes a profile for each range of shapes that an engine is built for.

    Args:
        build: the build.
        name: name of the engine.
        spec: interface of its graph.
        is_merged: whether the bundle's tree is a constant of the graph.
    """
    batch, nodes = build.options.max_batch_size, build.bundle.tree.num_nodes
    if name == "heads":
        ranges = {"heads": {"batch": (1, 1, batch)}}
    elif name == "reduce":
        ranges = {"reduce": {"num_rows": (1, nodes, batch * build.max_tree_nodes)}}
    else:
        max_nodes = nodes if is_merged else build.max_tree_nodes
        chunk = build.options.prefill_chunk or build.bundle.manifest.target.prefill_chunk
        chunk = min(chunk, build.capacity)
        read = (2, max(2, build.capacity // 2), build.capacity)
        shared = {"batch": (1, 1, batch), "num_read": read}
        ranges = {
            TREE_PROFILE: {
                **shared,
                "num_nodes": (1, nodes, max_nodes),
                "num_rows": (1, nodes, max_nodes),
            },
            PREFILL_PROFILE: {
                **shared,
                "num_nodes": (1, chunk, chunk),
                "num_rows": (1, 1, chunk),
            },
        }
        if is_merged:
            del ranges[PREFILL_PROFILE]
    profiles = []
    for profile, sizes in ranges.items():
        inputs = {}
        for tensor in spec.inputs:
            shape = set_capacity(tensor, build.capacity).shape
            if all(isinstance(size, int) for size in shape):
                continue
            low, opt, high = (
                [size if isinstance(size, int) else sizes[size][which] for size in shape]
                for which in range(3)
            )
            inputs[tensor.name] = ShapeRange(low, opt, high)
        profiles.append(Profile(profile, inputs))
    return profiles


def make_config(
    build: EngineBuild, builder: Any, profiles: list[Profile], *, has_weights: bool
) -> Any:
    """Makes the builder's options for an engine; `has_weights` adds the options on weights."""
    options, module = build.options, build.module
    config = builder.create_builder_config()
    for profile in profiles:
        optimization_profile = builder.create_optimization_profile()
        for name, range_ in profile.inputs.items():
            optimization_profile.set_shape(name, range_.min, range_.opt, range_.max)
        config.add_optimization_profile(optimization_profile)
    for option, flag in (_FLAGS | _WEIGHT_FLAGS if has_weights else _FLAGS).items():
        if getattr(options, option):
            config.set_flag(getattr(module.BuilderFlag, flag))
    if options.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.workspace_mib is not None:
        pool = module.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if not options.weight_streaming:
        for flag in build.product.flags:
            config.set_flag(getattr(module.BuilderFlag, flag))
    if "timing_cache" not in build.product.unsupported:
        _set_timing_cache(build, config)
    if build.product.ahead_of_time and options.compute_capabilities:
        members = list_capabilities(module)
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(members[capability], index)
    return config


def _set_timing_cache(build: EngineBuild, config: Any) -> None:
    """Gives the builder the timing cache, which must live until the engine is built."""
    build.live_cache = config.create_timing_cache(build.timing_cache)
    if build.live_cache is not None and config.set_timing_cache(build.live_cache, False):
        return
    build.tell(
        "warning: the timing cache is damaged or of another GPU or version of TensorRT: it is "
        "written anew"
    )
    build.live_cache = config.create_timing_cache(b"")
    config.set_timing_cache(build.live_cache, False)
