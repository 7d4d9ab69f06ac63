"""TensorRT's API on host memory: an engine is its ONNX file, and ONNX Runtime executes it.

It refuses what TensorRT refuses: shapes outside the profile, tensors without an address or beyond
their allocation, and a cache output at another address than its input where it is written in
place. Only what the project calls is here.
"""

import ctypes
import json
from base64 import b64decode, b64encode
from functools import partial
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from support.stand_ins.fake_cuda import FakeCuda

_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_}
_ONNX = {1: "FLOAT", 7: "INT64", 9: "BOOL", 10: "HALF"}


class _Tensor:
    def __init__(self, value: Any) -> None:
        self.name = value.name
        self.dtype = _ONNX[value.type.tensor_type.elem_type]
        dims = value.type.tensor_type.shape.dim
        self.shape = tuple(dim.dim_value if not dim.dim_param else -1 for dim in dims)


class FakeTensorRT:
    """Stands for the module `tensorrt`, on one `FakeCuda`."""

    class ILogger:
        ERROR, WARNING = 1, 2

        def __init__(self, *_: object) -> None: ...

    class IProgressMonitor:
        def __init__(self) -> None: ...

    Logger = ILogger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(
        VERSION_COMPATIBLE="version", REFIT="refit", STRIP_PLAN="strip", WEIGHT_STREAMING="stream"
    )
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    LayerType = SimpleNamespace(MATRIX_MULTIPLY="product")
    DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF", INT64="INT64", BF16="BF16", BOOL="BOOL")

    def __init__(self, cuda: FakeCuda, version: str = "11.0.0") -> None:
        self.cuda, self.__version__ = cuda, version
        self.free_bytes = 10**9
        self.engines: list[_Engine] = []
        self.fails_in_capture = self.is_rtx = False
        self.configs: list[Any] = []
        self.executed: list[str] = []
        self.graphs_executed: list[str] = []

    def Builder(self, logger: Any) -> Any:
        return _Builder(self)

    def OnnxParser(self, network: "_Network", logger: Any) -> Any:
        return SimpleNamespace(parse=network.parse, num_errors=0)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: _Engine(self, plan))

    def of_rtx(self) -> "FakeTensorRT":
        """Makes it TensorRT-RTX's, which allocates while it runs unless the build forbade it."""
        strategies = SimpleNamespace(LAZY="lazy", EAGER="eager")
        self.DynamicShapesKernelSpecializationStrategy = strategies
        self.ComputeCapability = SimpleNamespace(__members__={"SM86": 0, "SM120": 1})
        flags = {**vars(self.BuilderFlag), "REQUIRE_USER_ALLOCATION": "user"}
        self.BuilderFlag = SimpleNamespace(**flags)
        self.is_rtx = True
        return self


class _Network:
    num_layers = 0

    def parse(self, model: bytes, path: str) -> bool:
        self.path, self.model = path, onnx.load_from_string(model)
        return True

    def __getattr__(self, name: str) -> Any:
        inputs = [_Tensor(value) for value in self.model.graph.input]
        outputs = [_Tensor(value) for value in self.model.graph.output]
        return {
            "num_inputs": len(inputs),
            "num_outputs": len(outputs),
            "get_input": inputs.__getitem__,
            "get_output": outputs.__getitem__,
        }[name]


class _Config:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.flags: list[str] = []
        self.cache: bytes | None = None

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.limit = limit

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content.startswith(b"damaged") else content

    def set_timing_cache(self, cache: bytes | None, ignore_mismatch: bool) -> bool:
        if cache is None:
            raise TypeError("incompatible function arguments")
        if cache.startswith(b"other version") and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        if self.cache is None:
            return None
        content = self.cache + b"t"
        return SimpleNamespace(serialize=lambda: content)


class _Builder:
    def __init__(self, module: FakeTensorRT) -> None:
        self.module = module

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << 1, "strongly typed"
        return _Network()

    def create_builder_config(self) -> _Config:
        config = _Config()
        self.module.configs.append(config)
        return config

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *ranges: shapes.update({name: ranges})
        )

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        config.progress_monitor.phase_start("building", None, 1)
        if not config.progress_monitor.step_complete("building", 0):
            return None
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            for profile in config.profiles:
                assert (-1 in tensor.shape) == (tensor.name in profile)
        free = {v.name: list(_Tensor(v).shape) for v in network.model.graph.output}
        model = b64encode(network.model.SerializeToString()).decode()
        plan = {
            "path": network.path,
            "profiles": config.profiles,
            "outputs": free,
            "model": model,
            "flags": config.flags,
        }
        return json.dumps(plan).encode()


class _Engine:
    device_memory_size_v2 = 4096
    weight_streaming_budget_v2: int | None = None

    def __init__(self, module: FakeTensorRT, plan: Any) -> None:
        content = json.loads(bytes(plan))
        module.engines.append(self)
        self.module, self.profiles = module, content["profiles"]
        self.is_capturable = not module.is_rtx or "user" in content["flags"]
        self.graph = Path(content["path"]).stem
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(Path(content["path"]).parent))
        model = b64decode(content["model"])
        self.session = onnxruntime.InferenceSession(model, options)
        graph = onnx.load_from_string(model).graph
        self.inputs = {value.name: _Tensor(value) for value in graph.input}
        self.outputs = {value.name: _Tensor(value) for value in graph.output}
        self.in_place = any(node.op_type == "TensorScatter" for node in graph.node)
        self.names: list[str] = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> str:
        return str({**self.inputs, **self.outputs}[name].dtype)

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.module.free_bytes

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="lazy")
        config.set_execution_context_allocation_strategy = partial(setattr, config, "strategy")
        return config

    def create_execution_context(self, way: Any) -> "_Context":
        if not isinstance(way, str):
            assert way.dynamic_shapes_kernel_specialization_strategy == "eager", (
                "a graph would keep the kernels that stand in for those still compiled"
            )
            way = way.strategy
        assert way == "user", "each context would hold memory of its own"
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)

    def set_device_memory(self, address: int, size_bytes: int) -> None:
        self.scratch = address, size_bytes

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile].get(name, (shape, shape, shape))
        self.shapes[name] = shape
        return len(shape) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        fails = engine.module.fails_in_capture or not engine.is_capturable
        if fails and engine.module.cuda.captured is not None:
            engine.module.cuda.breaks_capture = True
            return False
        engine.module.cuda.check(*self.scratch)
        assert self.scratch[1] >= engine.device_memory_size_v2
        assert self.addresses.keys() == set(engine.names), "a tensor has no address"
        assert self.shapes.keys() == set(engine.inputs), "an input has no shape"
        for name in engine.inputs:
            if name.startswith("past_key_values."):
                output = name.replace("past_key_values.", "present.")
                same = self.addresses[name] == self.addresses[output]
                assert same == engine.in_place, f"{output} lies wrong"
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        engine.module.cuda.submit(lambda: self._execute(addresses, shapes))
        return True

    def _execute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        engine = self.engine
        engine.module.executed.append(f"profile {self.profile}")
        engine.module.graphs_executed.append(engine.graph)
        feeds = {
            name: self._array(addresses[name], shapes[name], tensor.dtype).copy()
            for name, tensor in engine.inputs.items()
        }
        names = list(engine.outputs)
        for name, array in zip(names, engine.session.run(names, feeds), strict=True):
            target = self._array(addresses[name], array.shape, engine.outputs[name].dtype)
            target[...] = array

    def _array(self, address: int, shape: tuple[int, ...], dtype: str) -> Any:
        type_: np.dtype[Any] = np.dtype(_NUMPY[dtype])
        size_bytes = prod(shape) * type_.itemsize
        self.engine.module.cuda.check(address, size_bytes)
        memory = (ctypes.c_uint8 * size_bytes).from_address(address)
        return np.ctypeslib.as_array(memory).view(type_).reshape(shape)
