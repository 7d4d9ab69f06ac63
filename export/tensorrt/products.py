"""TensorRT and TensorRT-RTX: what each can do, and how the builder of either is driven."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from medusa_trt.errors import BuildError, require_extra
from medusa_trt.runtime.engines.engine_record import MODULES, Product

_HARMLESS = "has Int64 binding"
"""A parser warning that states a fact: int64 inputs and outputs are int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpec:
    """A row of what the products offer.

    Attributes:
        name: the product.
        ahead_of_time: builds for GPUs that the machine does not have.
        unsupported: options of `BuildOptions` that it lacks, each with what to do instead.
        flags: builder flags without which its engines do not run as the runtime does; streamed
            weights rule them out, and are run otherwise.
    """

    name: Product
    ahead_of_time: bool
    unsupported: dict[str, str]
    flags: tuple[str, ...] = ()

    def load(self) -> Any:
        """Imports the Python module.

        Raises:
            BuildError: it is not installed.
        """
        with require_extra(f"building for {self.name}", self.name, error_class=BuildError):
            return import_module(MODULES[self.name])


PRODUCTS: dict[str, ProductSpec] = {
    "tensorrt": ProductSpec(
        name="tensorrt",
        ahead_of_time=False,
        unsupported={"compute_capabilities": "it builds for the GPU of this machine"},
    ),
    "tensorrt-rtx": ProductSpec(
        name="tensorrt-rtx",
        ahead_of_time=True,
        unsupported={
            "version_compatible": "build again after an update",
            "hardware_compatible": "name each compute capability",
            "timing_cache": "it times nothing while it builds",
        },
        # Memory that it allocates itself while it runs keeps a step from being a CUDA graph.
        flags=("REQUIRE_USER_ALLOCATION",),
    ),
}


def make_logger_class(module: Any) -> Any:
    """Makes a logger class for a TensorRT module; the logger keeps warnings and errors."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(message)
            elif severity == module.ILogger.WARNING and _HARMLESS not in message:
                self.warnings.append(message)

    return Logger


def make_progress_class(module: Any) -> Any:
    """Makes a class of progress monitors that report each phase and its finished share."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, tell: Callable[[str, float], None]) -> None:
            super().__init__()
            self._tell = tell
            self._steps: dict[str, int] = {}
            self.interrupt: KeyboardInterrupt | None = None

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self._steps[phase] = num_steps

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                self._tell(phase, (step + 1) / max(1, self._steps.get(phase, 1)))
            except KeyboardInterrupt as error:
                self.interrupt = error
            # False ends the build: what is raised here would be lost in native code.
            return self.interrupt is None

    return Monitor
