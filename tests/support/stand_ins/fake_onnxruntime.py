"""ONNX Runtime with a CUDA provider on host memory: the CPU provider runs what is queued.

A run waits in the queue of `FakeCuda` as one on a GPU would in its stream. It refuses what the
provider refuses: memory that was not allocated, options that it does not know, and a recorded graph
that is replayed with another binding.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
from support.stand_ins.fake_cuda import FakeCuda


class FakeOnnxRuntime:
    """Stands for the module `onnxruntime` of the package onnxruntime-gpu, on one `FakeCuda`."""

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, cuda: FakeCuda, *, has_libraries: bool = True) -> None:
        self.cuda, self.has_libraries = cuda, has_libraries
        self.recorded: dict[tuple[str, int], _Binding] = {}
        self.num_replays = 0
        self.executed: list[str] = []

    def RunOptions(self) -> Any:
        entries: dict[str, str] = {}
        return SimpleNamespace(entries=entries, add_run_config_entry=entries.__setitem__)

    def InferenceSession(
        self,
        path: str,
        options: Any,
        *,
        providers: list[tuple[str, dict[str, str]]],
        enable_fallback: bool,
    ) -> "_Session":
        assert not enable_fallback
        ((name, provider_options),) = providers
        assert name == "CUDAExecutionProvider"
        return _Session(self, path, options, provider_options)


class _Session:
    def __init__(
        self, module: FakeOnnxRuntime, path: str, options: Any, provider: dict[str, str]
    ) -> None:
        assert provider.keys() == {"device_id", "user_compute_stream", "enable_cuda_graph"}
        assert provider["user_compute_stream"] == "7", "not the engine's stream"
        self.module, self.path = module, path
        self.records = provider["enable_cuda_graph"] == "1"
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.names = {each.name for each in (*inputs, *outputs)}

    def get_providers(self) -> list[str]:
        providers = ["CUDAExecutionProvider"] if self.module.has_libraries else []
        return [*providers, "CPUExecutionProvider"]

    def io_binding(self) -> "_Binding":
        return _Binding(self)

    def run_with_iobinding(self, binding: "_Binding", options: Any) -> None:
        entries = options.entries
        assert entries.keys() == {"disable_synchronize_execution_providers", "gpu_graph_id"}
        assert entries["disable_synchronize_execution_providers"] == "1"
        assert binding.addresses.keys() == self.names, "a tensor has no address"
        self.module.executed.append(Path(self.path).stem)
        graph_id = int(entries["gpu_graph_id"])
        if self.records and graph_id != -1:
            key = self.path, graph_id
            self.module.num_replays += key in self.module.recorded
            # What was recorded runs again, whatever is bound now.
            assert self.module.recorded.setdefault(key, binding) is binding
        self.module.cuda.submit(lambda: self.session.run_with_iobinding(binding.binding))


class _Binding:
    def __init__(self, session: _Session) -> None:
        self.session, self.binding = session, session.session.io_binding()
        self.addresses: dict[str, int] = {}

    def bind_input(
        self, name: str, device: str, index: int, kind: Any, shape: tuple[int, ...], address: int
    ) -> None:
        self._check(name, device, index, kind, shape, address)
        self.binding.bind_input(name, "cpu", 0, kind, shape, address)

    def bind_output(
        self, name: str, device: str, index: int, kind: Any, shape: tuple[int, ...], address: int
    ) -> None:
        self._check(name, device, index, kind, shape, address)
        self.binding.bind_output(name, "cpu", 0, kind, shape, address)

    def _check(
        self, name: str, device: str, index: int, kind: Any, shape: tuple[int, ...], address: int
    ) -> None:
        # The only value that the provider reads on the host.
        assert (device, index) == ("cpu" if name == "num_sorted" else "cuda", 0)
        size_bytes = 2 if isinstance(kind, int) else kind().itemsize
        for size in shape:
            size_bytes *= size
        self.session.module.cuda.check(address, size_bytes)
        past = self.addresses.get(name.replace("present.", "past_key_values."), address)
        assert past == address, f"{name} lies wrong"
        self.addresses[name] = address
