"""Engines of TensorRT or TensorRT-RTX from a bundle's graphs."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec

from medusa_trt.errors import BuildError
from medusa_trt.export.tensorrt.checks import (
    check_interface,
    check_precision,
    describe_build_error,
    join_lines,
    set_capacity,
)
from medusa_trt.export.tensorrt.job import (
    EngineBuild,
    check_capabilities,
    check_options,
    choose_output,
    find_product,
    find_timing_cache,
    read_capability,
)
from medusa_trt.export.tensorrt.network import make_config, make_profiles, parse_network
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.export.tensorrt.products import make_progress_class
from medusa_trt.export.tensorrt.tree import merge_spec
from medusa_trt.files import check_writable, make_folder, replace_file
from medusa_trt.interrupts import count_interrupts, raise_swallowed
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle, sha256_from_file
from medusa_trt.runtime.engines.engine_record import (
    ENGINES_FOLDER,
    PREFILL_ENGINE,
    RECORD_FILE,
    WEIGHTLESS_ENGINES,
    EngineFile,
    EngineRecord,
    find_graph_of_engine,
)


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
    product = find_product(bundle, options)
    module = product.load()
    build = EngineBuild(bundle, options, product, module, progress)
    check_options(build)
    capabilities = options.compute_capabilities or (read_capability(product),)
    check_capabilities(build, capabilities)
    output = options.output or choose_output(bundle, options, product, capabilities)
    if options.output is not None and not output.absolute().parent.is_dir():
        raise BuildError(f"cannot write {output}: {output.absolute().parent} is not a folder")
    if output.exists() and not options.overwrite:
        raise BuildError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output.exists() and not (output / RECORD_FILE).is_file():
        raise BuildError(f"{output} holds no engines, so it is not overwritten: give another name")
    check_writable(output, BuildError, is_folder=True)
    cache_file = find_timing_cache(build, output)
    if cache_file is not None and cache_file.is_file():
        build.timing_cache = cache_file.read_bytes()
    progress(f"building with {product.name} {module.__version__} for {', '.join(capabilities)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with make_folder(output, options.overwrite) as folder:
            engines = {name: _build_engine(build, name, folder) for name in _list_engines(build)}
            record = _make_record(build, capabilities, engines)
            content = msgspec.json.format(msgspec.json.encode(record))
            (folder / RECORD_FILE).write_bytes(content)
    finally:
        _remove_if_empty(output.parent)
    if cache_file is not None:
        with replace_file(cache_file, BuildError) as temporary:
            temporary.write_bytes(build.timing_cache)
    return output


def _remove_if_empty(folder: Path) -> None:
    if folder.name == ENGINES_FOLDER and not any(folder.iterdir()):
        folder.rmdir()


def _list_engines(build: EngineBuild) -> tuple[str, ...]:
    prefill = (PREFILL_ENGINE,) if build.options.merge_tree else ()
    names = ("verify", *prefill, "heads", "reduce")
    return tuple(
        name for name in names if find_graph_of_engine(name) in build.bundle.manifest.graphs
    )


def _build_engine(build: EngineBuild, name: str, folder: Path) -> EngineFile:
    is_merged = name == "verify" and build.options.merge_tree
    graph_spec = build.bundle.manifest.graphs[find_graph_of_engine(name)]
    spec = merge_spec(graph_spec, build.bundle.tree.num_nodes) if is_merged else graph_spec
    build.tell(f"reading the {name} graph")
    builder = build.module.Builder(build.logger)
    network, parser = parse_network(build, builder, spec, is_merged)
    check_interface(build.module, network, spec, build.capacity)
    check_precision(build.module, network, build.bundle.manifest.target.cache_dtype)
    profiles = make_profiles(build, name, spec, is_merged)
    config = make_config(build, builder, profiles, has_weights=name not in WEIGHTLESS_ENGINES)
    last = _Throttle(build.tell)
    monitor = make_progress_class(build.module)(
        lambda phase, share: last(f"  {name}: {phase.lower()}, {share:.0%}")
    )
    config.progress_monitor = monitor
    build.tell(f"building the {name} engine")
    num_before = count_interrupts()
    plan = builder.build_serialized_network(network, config)
    del parser
    if monitor.interrupt is not None:
        raise monitor.interrupt
    raise_swallowed(num_before)
    _check_warnings(build, spec.file)
    if plan is None:
        raise BuildError(describe_build_error(build.logger.errors, name))
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
        inputs=[set_capacity(tensor, build.capacity) for tensor in spec.inputs],
        outputs=[set_capacity(tensor, build.capacity) for tensor in spec.outputs],
    )


def _check_warnings(build: EngineBuild, file: str) -> None:
    """Fails for an ignored input, which would be a wrong engine; passes other warnings on."""
    warnings = [join_lines(text) for text in build.logger.warnings]
    build.logger.warnings.clear()
    for text in warnings:
        if "unused" in text.lower():
            raise BuildError(
                f"{file}: TensorRT warns {text!r}, so the engine would not compute what the graph "
                "says: export the model again with this release"
            )
        build.tell(f"warning: {text}")


def _make_record(
    build: EngineBuild, capabilities: tuple[str, ...], engines: dict[str, EngineFile]
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
