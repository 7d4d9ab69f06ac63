"""GPU memory, copies, the stream and captured graphs, through cuda-python."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medusa_trt.errors import EngineError, require_extra

_MODULE = "cuda.bindings.runtime"
_ADVICE = {
    "cudaErrorMemoryAllocation": "; the memory is full: lower max_length or the batch size, or end "
    "other programs on the GPU"
}
"""Advice to the user, by CUDA's name of the error."""


def import_cuda_runtime() -> Any:
    """Imports cuda-python's module of the CUDA runtime.

    Raises:
        EngineError: cuda-python is not installed.
    """
    extras = "ort-cuda", "tensorrt", "tensorrt-rtx"
    with require_extra("decoding on a GPU", *extras, error_class=EngineError):
        module = import_module(_MODULE)
    return module


def read_compute_capability() -> str | None:
    """Reads the first GPU's compute capability, as "8.6"; None without a GPU or cuda-python."""
    try:
        cuda = Cuda(import_cuda_runtime())
    except EngineError:
        return None
    cuda.close()
    return cuda.compute_capability


@contextmanager
def close_on_error(cuda: "Cuda") -> Iterator["Cuda"]:
    """Closes the device if the block fails."""
    try:
        yield cuda
    except BaseException:
        cuda.close()
        raise


class Cuda:
    """One stream of the first GPU, with its memory, copies and captured graphs.

    Calls are asynchronous and run in order, unless their docstring says that they wait.

    Attributes:
        compute_capability: of the GPU, as "8.6".
    """

    def __init__(self, runtime: Any) -> None:
        """Opens the GPU and creates the stream.

        Args:
            runtime: the module of the CUDA runtime; its functions return tuples that begin with
                an error code.

        Raises:
            EngineError: CUDA finds no GPU.
        """
        self._runtime = runtime
        code, num_devices = runtime.cudaGetDeviceCount()
        if int(code) != 0 or num_devices < 1:
            raise EngineError(
                f"CUDA finds no GPU ({getattr(code, 'name', code)}): run this on a machine that "
                "has one, with its driver"
            )
        attributes = runtime.cudaDeviceAttr
        major = self._call(
            "cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0
        )
        minor = self._call(
            "cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0
        )
        self.compute_capability = f"{major[0]}.{minor[0]}"
        # The default stream does not wait for this one. Other code in the process may use the
        # default stream, and a wait would end a capture.
        flags = runtime.cudaStreamNonBlocking
        (self._stream,) = self._call("cudaStreamCreateWithFlags", flags)
        self._device: list[int] = []
        self._pinned: list[int] = []

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Allocates zeroed memory on the device, and returns its address."""
        (address,) = self._call("cudaMalloc", max(1, size_bytes))
        self._device.append(int(address))
        self._call("cudaMemsetAsync", address, 0, size_bytes, self._stream)
        return int(address)

    def free(self, address: int) -> None:
        """Frees device memory."""
        self._device.remove(address)
        self._call("cudaFree", address)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocates a zeroed array in pinned host memory, which the device copies directly."""
        item = np.dtype(dtype)
        size_bytes = int(np.prod(shape)) * item.itemsize
        (address,) = self._call("cudaMallocHost", max(1, size_bytes))
        self._pinned.append(int(address))
        memory = (ctypes.c_uint8 * size_bytes).from_address(int(address))
        array: NDArray[Any] = np.ctypeslib.as_array(memory).view(item).reshape(shape)
        array[...] = 0
        return array

    def free_pinned(self, array: NDArray[Any]) -> None:
        """Frees a pinned array, which must not be used again."""
        address = array.ctypes.data
        self._pinned.remove(address)
        self._call("cudaFreeHost", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copies a pinned array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copies device memory to a pinned array."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy_blocks(
        self,
        target: int,
        source: int,
        *,
        size_bytes: int,
        num_inner: int,
        inner_stride: int,
        num_outer: int,
        outer_stride: int,
    ) -> None:
        """Copies `num_outer` × `num_inner` blocks of device memory in one call.

        A stride is the distance in bytes between the starts of two blocks, the same in source and
        target. The outer stride is a multiple of the inner stride.
        """
        runtime = self._runtime
        height = outer_stride // inner_stride
        assert height * inner_stride == outer_stride
        parameters = runtime.cudaMemcpy3DParms()
        parameters.srcPtr = self._pitched(source, inner_stride, size_bytes, height)
        parameters.dstPtr = self._pitched(target, inner_stride, size_bytes, height)
        extent = runtime.cudaExtent()
        extent.width, extent.height, extent.depth = size_bytes, num_inner, num_outer
        parameters.extent = extent
        parameters.kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy3DAsync", parameters, self._stream)

    def synchronize(self) -> None:
        """Waits for all calls so far."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, record: Callable[[], None]) -> Any:
        """Captures the calls of `record` as a CUDA graph, without running them; see `launch`."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            record()
        except BaseException:
            # This fails too, but the error to report is the one that ended the capture.
            self._runtime.cudaStreamEndCapture(self._stream)
            raise
        (graph,) = self._call("cudaStreamEndCapture", self._stream)
        (executable,) = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, executable: Any) -> None:
        """Runs a captured graph."""
        self._call("cudaGraphLaunch", executable, self._stream)

    def free_graph(self, executable: Any) -> None:
        """Frees a captured graph."""
        self._call("cudaGraphExecDestroy", executable)

    def close(self) -> None:
        """Waits for all calls so far, and frees all memory and the stream."""
        if self._stream is not None:
            self._runtime.cudaStreamSynchronize(self._stream)
        for address in self._device:
            self._call("cudaFree", address)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
        self._device, self._pinned, self._stream = [], [], None

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        direction = getattr(self._runtime.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, size_bytes, direction, self._stream)

    def _pitched(self, address: int, pitch: int, width: int, height: int) -> Any:
        pointer = self._runtime.cudaPitchedPtr()
        pointer.ptr, pointer.pitch, pointer.xsize, pointer.ysize = address, pitch, width, height
        return pointer

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        code, *results = getattr(self._runtime, name)(*arguments)
        if int(code) != 0:
            error = getattr(code, "name", str(code))
            raise EngineError(f"CUDA failed in {name}: {error}{_ADVICE.get(error, '')}")
        return tuple(results)
