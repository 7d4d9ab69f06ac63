"""Engines of TensorRT or TensorRT-RTX from a bundle's graphs."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from medusa_trt.errors import BuildError
from medusa_trt.export.output_folder import new_folder
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.trt_checks import (
    build_failure,
    check_interface,
    check_precision,
    one_line,
    parser_failure,
    with_capacity,
)
from medusa_trt.export.trt_options import BuildOptions, num_cache_rows
from medusa_trt.export.trt_products import PRODUCTS, ProductSpec, logger_class, progress_class
from medusa_trt.export.trt_tree import merge_tree, merged_spec
from medusa_trt.interrupts import num_interrupts, raise_swallowed
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle, GraphSpec, sha256_from_file
from medusa_trt.runtime.engine_record import (
    ENGINES_FOLDER,
    PREFILL_ENGINE,
    PREFILL_PROFILE,
    RECORD_FILE,
    TREE_PROFILE,
    WEIGHTLESS_ENGINES,
    EngineFile,
    EngineRecord,
    Profile,
    ShapeRange,
    graph_of_engine,
)

_FLAGS = {"version_compatible": "VERSION_COMPATIBLE"}
_WEIGHT_FLAGS = {
    "refittable": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
}


@dataclass(slots=True)
class _Build:
    """What the steps of one build share."""

    bundle: Bundle
    options: BuildOptions
    product: ProductSpec
    module: Any
    tell: Callable[[str], None]
    logger: Any = field(init=False)
    timing_cache: bytes = b""
    live_cache: Any = None

    def __post_init__(self) -> None:
        self.logger = logger_class(self.module)()

    @property
    def capacity(self) -> int:
        """Rows of a cache slot."""
        length = self.options.max_length or self.bundle.manifest.model.max_length
        return num_cache_rows(length, self.max_tree_nodes)

    @property
    def max_tree_nodes(self) -> int:
        return max(self.options.max_tree_nodes, self.bundle.tree.num_nodes)


def build_engines(
    bundle: Bundle, options: BuildOptions, progress: Callable[[str], None] = print
) -> Path:
    """Builds a bundle's engines; they appear whole and checked, or not at all.

    Args:
        bundle: one exported for a TensorRT target.
        options: what to build.
        progress: told each stage.

    Returns:
        The engines' folder.

    Raises:
        BuildError: the bundle is of another kind, the product is missing or lacks an option, or
            TensorRT refuses a graph.
        ExportError: the folder cannot be written.
    """
    product = _product(bundle, options)
    module = product.load()
    build = _Build(bundle, options, product, module, progress)
    _check_options(build)
    capabilities = options.compute_capabilities or (_own_capability(product),)
    _check_capabilities(build, capabilities)
    output = options.output or _default_output(bundle, options, product, capabilities)
    if options.output is not None and not output.absolute().parent.is_dir():
        raise BuildError(f"cannot write {output}: {output.absolute().parent} is not a folder")
    if output.exists() and not options.overwrite:
        raise BuildError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output.exists() and not (output / RECORD_FILE).is_file():
        raise BuildError(f"{output} holds no engines, so it is not overwritten: give another name")
    cache_file = _timing_cache_file(build, output)
    if cache_file is not None and cache_file.is_file():
        build.timing_cache = cache_file.read_bytes()
    progress(f"building with {product.name} {module.__version__} for {', '.join(capabilities)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(output, options.overwrite) as folder:
            engines = {name: _build_engine(build, name, folder) for name in _engine_names(build)}
            record = _record(build, capabilities, engines)
            content = msgspec.json.format(msgspec.json.encode(record))
            (folder / RECORD_FILE).write_bytes(content)
    finally:
        _remove_if_empty(output.parent)
    if cache_file is not None:
        partial = cache_file.with_suffix(".partial")
        partial.write_bytes(build.timing_cache)
        partial.rename(cache_file)
    return output


def _remove_if_empty(folder: Path) -> None:
    if folder.name == ENGINES_FOLDER and not any(folder.iterdir()):
        folder.rmdir()


def _product(bundle: Bundle, options: BuildOptions) -> ProductSpec:
    own = bundle.manifest.target.name
    asked = options.target or own
    target = TARGETS.get(asked)
    if target is None or target.product is None:
        raise BuildError(
            f"no engines are built for {asked}: choose "
            f"{', '.join(row.name for row in TARGETS.values() if row.product)}"
        )
    exported_for = TARGETS.get(own)
    if exported_for is None or exported_for.product is None:
        raise BuildError(
            f"the bundle was exported for {own}: export the model with --target {asked}"
        )
    if asked == "tensorrt-jetson" and own != asked:
        raise BuildError(
            f"the bundle for {own} has operators that TensorRT 10.3 lacks: export the model with "
            "--target tensorrt-jetson"
        )
    if any(tensor.dtype == "double" for tensor in bundle.manifest.graphs["reduce"].inputs):
        raise BuildError(
            "the bundle's reduce graph computes in float64, which TensorRT lacks: export the "
            "model again with this release"
        )
    return PRODUCTS[target.product]


def _check_options(build: _Build) -> None:
    for name, instead in build.product.unsupported.items():
        if getattr(build.options, name):
            option = "--" + name.replace("_", "-").replace("capabilities", "capability")
            raise BuildError(f"{build.product.name} has no {option}: {instead}")
    limit = build.bundle.manifest.model.max_length
    if build.options.max_length is not None and build.options.max_length > limit:
        raise BuildError(
            f"max_length is {build.options.max_length}, the bundle allows {limit}: export the "
            "model with a larger --max-length"
        )


def _check_capabilities(build: _Build, capabilities: tuple[str, ...]) -> None:
    if build.product.ahead_of_time:
        known = _capability_members(build.module)
        for capability in capabilities:
            if capability not in known:
                raise BuildError(
                    f"{build.product.name} {build.module.__version__} does not build for compute "
                    f"capability {capability}: choose {', '.join(known)}"
                )


def _capability_members(module: Any) -> dict[str, Any]:
    """The members of `ComputeCapability` by the capability's number."""
    members = module.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name[:2] == "SM"}


def _own_capability(product: ProductSpec) -> str:
    from medusa_trt.runtime.device_memory import compute_capability

    found = compute_capability()
    if found is not None:
        return found
    hint = "name the GPU with --compute-capability" if product.ahead_of_time else "run it there"
    raise BuildError(f"this machine has no GPU that CUDA can use: {hint}")


def _default_output(
    bundle: Bundle, options: BuildOptions, product: ProductSpec, capabilities: tuple[str, ...]
) -> Path:
    target = options.target or bundle.manifest.target.name
    name = "-".join([target, *(f"sm{each.replace('.', '')}" for each in capabilities)])
    return bundle.path / ENGINES_FOLDER / name


def _timing_cache_file(build: _Build, output: Path) -> Path | None:
    if "timing_cache" in build.product.unsupported:
        return None
    asked = build.options.timing_cache
    if asked is not None and (asked.is_dir() or not asked.parent.is_dir()):
        raise BuildError(f"--timing-cache {asked}: give a file in a folder that is there")
    return asked or output.parent / "timing.cache"


def _engine_names(build: _Build) -> tuple[str, ...]:
    return ("verify", *([PREFILL_ENGINE] if build.options.merge_tree else []), "heads", "reduce")


def _build_engine(build: _Build, name: str, folder: Path) -> EngineFile:
    is_merged = name == "verify" and build.options.merge_tree
    graph_spec = build.bundle.manifest.graphs[graph_of_engine(name)]
    spec = merged_spec(graph_spec, build.bundle.tree.num_nodes) if is_merged else graph_spec
    build.tell(f"reading the {name} graph")
    builder = build.module.Builder(build.logger)
    network, parser = _parsed(build, builder, spec, is_merged)
    check_interface(build.module, network, spec, build.capacity)
    check_precision(build.module, network, build.bundle.manifest.target.cache_dtype)
    profiles = _profiles(build, name, spec, is_merged)
    config = _config(build, builder, profiles, has_weights=name not in WEIGHTLESS_ENGINES)
    last = _Throttle(build.tell)
    monitor = progress_class(build.module)(
        lambda phase, share: last(f"  {name}: {phase.lower()}, {share:.0%}")
    )
    config.progress_monitor = monitor
    build.tell(f"building the {name} engine")
    num_before = num_interrupts()
    plan = builder.build_serialized_network(network, config)
    raise_swallowed(num_before)  # by the monitor, which ends the build
    del parser
    if monitor.interrupt is not None:
        raise monitor.interrupt
    raise_swallowed(num_before)
    _check_warnings(build, spec.file)
    if plan is None:
        raise BuildError(build_failure(build.logger.errors, name))
    path = folder / f"{name}.engine"
    path.write_bytes(memoryview(plan))
    if "timing_cache" not in build.product.unsupported:
        build.timing_cache = bytes(memoryview(config.get_timing_cache().serialize()))
    return EngineFile(
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256=sha256_from_file(path),
        graph_sha256=build.bundle.manifest.files[spec.file].sha256,
        profiles=profiles,
        inputs=[with_capacity(tensor, build.capacity) for tensor in spec.inputs],
        outputs=[with_capacity(tensor, build.capacity) for tensor in spec.outputs],
    )


def _parsed(build: _Build, builder: Any, spec: GraphSpec, is_merged: bool) -> tuple[Any, Any]:
    """The network of a graph whose cache has its final length, and the parser that owns weights."""
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
        raise BuildError(parser_failure(build.module, parser, spec.file))
    return network, parser


def _profiles(build: _Build, name: str, spec: GraphSpec, is_merged: bool) -> list[Profile]:
    batch, nodes = build.options.max_batch_size, build.bundle.tree.num_nodes
    if name == "heads":
        ranges = {"heads": {"batch": (1, 1, batch)}}
    elif name == "reduce":
        ranges = {"reduce": {"num_rows": (1, nodes, batch * build.max_tree_nodes)}}
    else:
        most = nodes if is_merged else build.max_tree_nodes
        chunk = build.options.prefill_chunk or build.bundle.manifest.target.prefill_chunk
        chunk = min(chunk, build.capacity)
        read = (2, max(2, build.capacity // 2), build.capacity)
        shared = {"batch": (1, 1, batch), "num_read": read}
        ranges = {
            TREE_PROFILE: {
                **shared,
                "num_nodes": (1, nodes, most),
                "num_rows": (1, nodes, most),
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
            shape = with_capacity(tensor, build.capacity).shape
            if all(isinstance(size, int) for size in shape):
                continue
            low, opt, high = (
                [size if isinstance(size, int) else sizes[size][which] for size in shape]
                for which in range(3)
            )
            inputs[tensor.name] = ShapeRange(low, opt, high)
        profiles.append(Profile(profile, inputs))
    return profiles


def _check_warnings(build: _Build, file: str) -> None:
    """Fails for an ignored input, which would be a wrong engine; passes other warnings on."""
    warnings = [one_line(text) for text in build.logger.warnings]
    build.logger.warnings.clear()
    for text in warnings:
        if "unused" in text.lower():
            raise BuildError(
                f"{file}: TensorRT warns {text!r}, so the engine would not compute what the graph "
                "says: export the model again with this release"
            )
        build.tell(f"warning: {text}")


def _config(build: _Build, builder: Any, profiles: list[Profile], *, has_weights: bool) -> Any:
    options, module = build.options, build.module
    config = builder.create_builder_config()
    for profile in profiles:
        own = builder.create_optimization_profile()
        for name, range_ in profile.inputs.items():
            own.set_shape(name, range_.min, range_.opt, range_.max)
        config.add_optimization_profile(own)
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
        members = _capability_members(module)
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(members[capability], index)
    return config


def _set_timing_cache(build: _Build, config: Any) -> None:
    """Hands the timings so far to the builder, which needs them until the engine is built."""
    build.live_cache = config.create_timing_cache(build.timing_cache)
    if build.live_cache is not None and config.set_timing_cache(build.live_cache, False):
        return
    build.tell(
        "warning: the timing cache is damaged or of another GPU or version of TensorRT: it is "
        "written anew"
    )
    build.live_cache = config.create_timing_cache(b"")
    config.set_timing_cache(build.live_cache, False)


def _record(
    build: _Build, capabilities: tuple[str, ...], engines: dict[str, EngineFile]
) -> EngineRecord:
    options = build.options
    shown = {
        name: str(value) if isinstance(value, (Path, tuple)) else value
        for name, value in asdict(options).items()
    }
    return EngineRecord(
        product=build.product.name,
        version=str(build.module.__version__),
        compute_capabilities=list(capabilities),
        any_version=options.version_compatible,
        any_hardware=options.hardware_compatible,
        refittable=options.refittable or options.strip_weights,
        stripped=options.strip_weights,
        weight_streaming=options.weight_streaming,
        capacity=build.capacity,
        max_batch_size=options.max_batch_size,
        weights_sha256=build.bundle.manifest.files[names.WEIGHTS_FILE].sha256,
        options=shown,
        engines=engines,
        medusa_choices=(
            [list(node) for node in build.bundle.tree.medusa_choices]
            if options.merge_tree
            else None
        ),
    )


class _Throttle:
    """Passes a line on at most every few seconds."""

    def __init__(self, tell: Callable[[str], None], seconds: float = 3.0) -> None:
        self._tell, self._seconds = tell, seconds
        self._next = time.monotonic() + seconds

    def __call__(self, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._tell(text)
