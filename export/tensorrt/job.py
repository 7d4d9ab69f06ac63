"""One build of engines: its options, and the checks that it can be done."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medusa_trt.errors import BuildError
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.tensorrt.options import BuildOptions, count_cache_rows
from medusa_trt.export.tensorrt.products import PRODUCTS, ProductSpec, make_logger_class
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.engine_record import ENGINES_FOLDER


@dataclass(slots=True)
class EngineBuild:
    """Data that the steps of one build share.

    Attributes:
        bundle: the bundle whose engines are built.
        options: options of the build.
        product: the description of `module`.
        module: `tensorrt` or `tensorrt_rtx`.
        tell: called with each stage and each warning.
        logger: TensorRT's logger, which keeps warnings and errors.
        timing_cache: kernel timings so far, as bytes.
        live_cache: the builder's timing cache.
    """

    bundle: Bundle
    options: BuildOptions
    product: ProductSpec
    module: Any
    tell: Callable[[str], None]
    logger: Any = field(init=False)
    timing_cache: bytes = b""
    live_cache: Any = None

    def __post_init__(self) -> None:
        self.logger = make_logger_class(self.module)()

    @property
    def capacity(self) -> int:
        """Number of rows in a cache slot."""
        length = self.options.max_length or self.bundle.manifest.model.max_length
        return count_cache_rows(length, self.max_tree_nodes)

    @property
    def max_tree_nodes(self) -> int:
        """Largest number of nodes in a step over a tree."""
        return max(self.options.max_tree_nodes, self.bundle.tree.num_nodes)


def find_product(bundle: Bundle, options: BuildOptions) -> ProductSpec:
    """Finds the product that builds a bundle's engines.

    Raises:
        BuildError: the bundle was exported for another kind of target than the options name.
    """
    bundle_target = bundle.manifest.target.name
    name = options.target or bundle_target
    target = TARGETS.get(name)
    if target is None or target.product is None:
        raise BuildError(
            f"no engines are built for {name}: choose "
            f"{', '.join(row.name for row in TARGETS.values() if row.product)}"
        )
    exported_for = TARGETS.get(bundle_target)
    if exported_for is None or exported_for.product is None:
        raise BuildError(
            f"the bundle was exported for {bundle_target}: export the model with --target {name}"
        )
    if name == "tensorrt-jetson" and bundle_target != name:
        raise BuildError(
            f"the bundle for {bundle_target} has operators that TensorRT 10.3 lacks: "
            "export the model with --target tensorrt-jetson"
        )
    if any(tensor.dtype == "double" for tensor in bundle.manifest.graphs["reduce"].inputs):
        raise BuildError(
            "the bundle's reduce graph computes in float64, which TensorRT lacks: export the "
            "model again with this release"
        )
    return PRODUCTS[target.product]


def check_options(build: EngineBuild) -> None:
    """Refuses options that the product lacks, or that the bundle does not allow.

    Raises:
        BuildError: there is such an option; the message names it.
    """
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


def check_capabilities(build: EngineBuild, capabilities: tuple[str, ...]) -> None:
    """Refuses GPUs that an ahead-of-time build does not know.

    Raises:
        BuildError: there is such a GPU; the message names its compute capability.
    """
    if build.product.ahead_of_time:
        known = list_capabilities(build.module)
        for capability in capabilities:
            if capability not in known:
                raise BuildError(
                    f"{build.product.name} {build.module.__version__} does not build for compute "
                    f"capability {capability}: choose {', '.join(known)}"
                )


def list_capabilities(module: Any) -> dict[str, Any]:
    """Returns the members of `ComputeCapability` by the capability's number."""
    members = module.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name[:2] == "SM"}


def read_capability(product: ProductSpec) -> str:
    """Reads the compute capability of this machine's GPU.

    Raises:
        BuildError: the machine has no GPU.
    """
    from medusa_trt.runtime.engines.device.memory import read_compute_capability

    capability = read_compute_capability()
    if capability is not None:
        return capability
    hint = "name the GPU with --compute-capability" if product.ahead_of_time else "run it there"
    raise BuildError(f"this machine has no GPU that CUDA can use: {hint}")


def choose_output(
    bundle: Bundle, options: BuildOptions, product: ProductSpec, capabilities: tuple[str, ...]
) -> Path:
    """Chooses a folder in the bundle, named by target and GPUs."""
    target = options.target or bundle.manifest.target.name
    name = "-".join([target, *(f"sm{capability.replace('.', '')}" for capability in capabilities)])
    return bundle.path / ENGINES_FOLDER / name


def find_timing_cache(build: EngineBuild, output: Path) -> Path | None:
    """Finds the file of the timing cache; None where the product has none.

    Raises:
        BuildError: the option names no file that can be written.
    """
    if "timing_cache" in build.product.unsupported:
        return None
    file = build.options.timing_cache
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise BuildError(f"--timing-cache {file}: give a file in a folder that is there")
    return file or output.parent / "timing.cache"
