"""GPU memory, copies, the stream and captured graphs, through cuda-python."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medusa_trt.errors import EngineError

_MODULE = "cuda.bindings.runtime"
_ADVICE = {
    "cudaErrorMemoryAllocation": "; the memory is full: lower max_length or the batch size, or end "
    "what else uses the GPU"
}
"""What to do after an error, where something can be done."""


def cuda_runtime() -> Any:
    """The module with the functions of CUDA's runtime.

    Raises:
        EngineError: cuda-python is not installed.
    """
    try:
        return import_module(_MODULE)
    except ImportError as error:
        raise EngineError(
            "cuda-python is not installed: pip install 'medusa-trt[ort-cuda]', "
            "'medusa-trt[tensorrt]' or 'medusa-trt[tensorrt-rtx]'"
        ) from error


def compute_capability() -> str | None:
    """Of the first GPU, as "8.6"; None where CUDA finds none or cuda-python is missing."""
    try:
        cuda = Cuda(cuda_runtime())
    except EngineError:
        return None
    cuda.close()
    return cuda.compute_capability


@contextmanager
def closed_on_error(cuda: "Cuda") -> Iterator["Cuda"]:
    """Frees what was allocated on the device where the block fails."""
    try:
        yield cuda
    except BaseException:
        cuda.close()
        raise


class Cuda:
    """One stream of the first GPU, and what is done on it.

    Everything that is not said to wait is asynchronous, in order. The runtime module is injected:
    its functions return a tuple that begins with an error code.
    """

    def __init__(self, runtime: Any) -> None:
        """Takes the module.

        Raises:
            EngineError: there is no GPU that CUDA can use.
        """
        self._runtime = runtime
        code, num_devices = runtime.cudaGetDeviceCount()
        if int(code) != 0 or num_devices < 1:
            raise EngineError(
                f"CUDA finds no GPU ({getattr(code, 'name', code)}): run this on a machine that "
                "has one, with its driver"
            )
        capability = [
            self._call("cudaDeviceGetAttribute", getattr(runtime.cudaDeviceAttr, name), 0)[0]
            for name in (
                "cudaDevAttrComputeCapabilityMajor",
                "cudaDevAttrComputeCapabilityMinor",
            )
        ]
        self.compute_capability = ".".join(map(str, capability))
        # One that the default stream does not wait for: other code in the process may use that,
        # and would end a capture by it.
        flags = runtime.cudaStreamNonBlocking
        (self._stream,) = self._call("cudaStreamCreateWithFlags", flags)
        self._device: list[int] = []
        self._pinned: list[int] = []

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Address of new zeroed memory on the device."""
        (address,) = self._call("cudaMalloc", max(1, size_bytes))
        self._device.append(int(address))
        self._call("cudaMemsetAsync", address, 0, size_bytes, self._stream)
        return int(address)

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._device.remove(address)
        self._call("cudaFree", address)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed array in host memory that the device copies from and to without a detour."""
        type_ = np.dtype(dtype)
        size_bytes = int(np.prod(shape)) * type_.itemsize
        (address,) = self._call("cudaMallocHost", max(1, size_bytes))
        self._pinned.append(int(address))
        memory = (ctypes.c_uint8 * size_bytes).from_address(int(address))
        array: NDArray[Any] = np.ctypeslib.as_array(memory).view(type_).reshape(shape)
        array[...] = 0
        return array

    def free_pinned(self, array: NDArray[Any]) -> None:
        """Gives a pinned array's memory back; the array must not be used again."""
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
        """Copies `num_outer` × `num_inner` blocks of memory on the device, in one call.

        Strides are bytes between the beginnings of blocks, the same on both sides; the outer one
        is a multiple of the inner.
        """
        runtime = self._runtime
        height = outer_stride // inner_stride
        assert height * inner_stride == outer_stride
        job = runtime.cudaMemcpy3DParms()
        job.srcPtr = self._pitched(source, inner_stride, size_bytes, height)
        job.dstPtr = self._pitched(target, inner_stride, size_bytes, height)
        extent = runtime.cudaExtent()
        extent.width, extent.height, extent.depth = size_bytes, num_inner, num_outer
        job.extent = extent
        job.kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy3DAsync", job, self._stream)

    def synchronize(self) -> None:
        """Waits for everything asked so far."""
        self._call("cudaStreamSynchronize", self._stream)

    def captured(self, record: Callable[[], None]) -> Any:
        """A graph of what `record` asks for, which is not done yet; see `launch`."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            record()
        except BaseException:
            # This fails too, but what ended the capture is the error to report.
            self._runtime.cudaStreamEndCapture(self._stream)
            raise
        (graph,) = self._call("cudaStreamEndCapture", self._stream)
        (executable,) = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, executable: Any) -> None:
        """Does what a captured graph holds."""
        self._call("cudaGraphLaunch", executable, self._stream)

    def free_graph(self, executable: Any) -> None:
        """Frees a captured graph."""
        self._call("cudaGraphExecDestroy", executable)

    def close(self) -> None:
        """Frees all memory and the stream, after what was asked so far."""
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
        kind_ = getattr(self._runtime.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, size_bytes, kind_, self._stream)

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
