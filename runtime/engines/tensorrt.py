"""The engine on TensorRT and TensorRT-RTX."""

from importlib import import_module
from pathlib import Path
from typing import Any

from medusa_trt.errors import EngineError, require_extra
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.engine import DeviceEngine
from medusa_trt.runtime.engines.device.memory import Cuda, close_on_error, import_cuda_runtime
from medusa_trt.runtime.engines.engine_record import MODULES, PREFILL_ENGINE, EngineRecord, Product
from medusa_trt.runtime.engines.tensorrt_loading import LoadedEngines, load_engines
from medusa_trt.tree_configs import MedusaTree


class TrtEngine(DeviceEngine):
    """Runs a bundle's engines with TensorRT or TensorRT-RTX."""

    _capacity_advice = "build engines with a larger --max-length"

    def __init__(
        self,
        bundle: Bundle,
        *,
        product: Product = "tensorrt",
        folder: Path | None = None,
        capacity: int | None = None,
        batch_size: int = 1,
        module: Any = None,
        cuda: Any = None,
    ) -> None:
        """Loads the engines.

        Args:
            bundle: an opened bundle.
            product: "tensorrt" or "tensorrt-rtx".
            folder: folder of the engines; by default the one in the bundle that fits this machine.
            capacity: least number of rows in a KV cache slot; by default the number that the
                engines were built for.
            batch_size: number of sequences in one step.
            module: the product's Python module; imported by default.
            cuda: the module of the CUDA runtime; the one of cuda-python by default.

        Raises:
            EngineError: a library, a GPU or engines that fit this machine are missing.
        """
        if module is None:
            with require_extra("decoding", product, error_class=EngineError):
                module = import_module(MODULES[product])
        device = Cuda(cuda if cuda is not None else import_cuda_runtime())
        with close_on_error(device):
            loaded = load_engines(bundle, folder, product, module, device, batch_size)
            record, in_place = loaded.record, bundle.manifest.target.cache_in_place
            _check_sizes(record, capacity, batch_size, in_place)
            executor = _TrtExecutor(module, loaded, device)
            super().__init__(
                bundle, executor, device, capacity=record.capacity, batch_size=batch_size
            )
        self.prefill_chunk = record.max_nodes


class _TrtExecutor:
    """Makes execution contexts; see `Executor`.

    Contexts run one after the other, so all of them compute in the same memory. By default
    TensorRT gives each context separate memory, enough for the largest step.
    """

    def __init__(self, module: Any, loaded: LoadedEngines, cuda: Cuda) -> None:
        self._module, self._record, self._runtime = module, loaded.record, loaded.runtime
        self._engines, self._stream = loaded.engines, cuda.stream
        sizes = [engine.device_memory_size_v2 for engine in self._engines.values()]
        self._scratch_bytes = max(1, *sizes)
        self._scratch = cuda.allocate(self._scratch_bytes)
        self._context_options = {
            name: self._make_context_options(engine) for name, engine in self._engines.items()
        }

    @property
    def is_capturable(self) -> bool:
        """See `Executor`; steps with streamed weights allocate memory and cannot be recorded."""
        return not self._record.weight_streaming

    def open(self, graph: str, tree: MedusaTree | None) -> "_Context":
        """See `Executor.open`."""
        name, profile = graph, 0
        if graph == "verify":
            assert tree is not None
            name = graph if self._takes_tree(tree) else PREFILL_ENGINE
            profile = self._choose_profile(name, tree.num_nodes)
        context = self._engines[name].create_execution_context(self._context_options[name])
        if context is None or not context.set_optimization_profile_async(profile, self._stream):
            raise EngineError(
                f"TensorRT cannot make an execution context of the {name} engine: the GPU's "
                "memory may be full"
            )
        context.set_device_memory(self._scratch, self._scratch_bytes)
        inputs = {tensor.name for tensor in self._record.engines[name].inputs}
        return _Context(name, context, self._stream, inputs)

    def close(self) -> None:
        """Frees the engines, then the runtime that they use."""
        self._context_options.clear()
        self._engines.clear()
        self._runtime = None

    def _make_context_options(self, engine: Any) -> Any:
        """Makes the argument of `create_execution_context`."""
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        specialization = getattr(self._module, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:
            return strategy
        # By default TensorRT-RTX compiles the kernels for a shape while the first runs use others.
        # A context has one shape and its second run is recorded, so it has to wait for them.
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        return config

    def _takes_tree(self, tree: MedusaTree) -> bool:
        """Returns whether the verify engine takes this tree."""
        merged_choices = self._record.medusa_choices
        return merged_choices is None or merged_choices == [
            list(node) for node in tree.medusa_choices
        ]

    def _choose_profile(self, name: str, num_nodes: int) -> int:
        limits = self._record.engines[name].max_nodes
        for index, limit in enumerate(limits):
            if num_nodes <= limit:
                return index
        raise EngineError(
            f"a step of {num_nodes} nodes: the engines take {max(limits)} at most; build with a "
            "larger --max-tree-nodes or --prefill-chunk"
        )


class _Context:
    """An execution context; see `Executable`."""

    def __init__(self, name: str, context: Any, stream: int, inputs: set[str]) -> None:
        self._name, self._context, self._stream = name, context, stream
        self._inputs = inputs

    def takes(self, name: str) -> bool:
        """See `Executable.takes`."""
        return name in self._inputs

    def bind_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """See `Executable.bind_input`; the types were checked when the engine was loaded."""
        fits = self._context.set_input_shape(name, shape)
        if not fits or not self._context.set_tensor_address(name, address):
            raise EngineError(
                f"the engine does not take {name} of shape {shape}: build it again with "
                "larger limits"
            )

    def bind_host_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """See `Executable.bind_host_input`."""
        self.bind_input(name, address, shape, dtype)

    def bind_output(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """See `Executable.bind_output`."""
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"the engine has no output {name}: build it again")

    def enqueue(self) -> None:
        """See `Executable.enqueue`."""
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(f"TensorRT failed in the {self._name} engine")


def _check_sizes(
    record: EngineRecord, capacity: int | None, batch_size: int, in_place: bool
) -> None:
    if capacity is not None and capacity > record.capacity:
        raise EngineError(
            f"the engines were built for a KV cache of {record.capacity} rows, "
            f"{capacity} are needed: lower max_length, or build with a larger --max-length"
        )
    max_batch_size = record.max_batch_size if in_place else 1
    if not 1 <= batch_size <= max_batch_size:
        raise EngineError(
            f"batch_size is {batch_size}: these engines take 1 to {max_batch_size}"
            + ("; build with a larger --max-batch-size" if in_place else "")
        )
