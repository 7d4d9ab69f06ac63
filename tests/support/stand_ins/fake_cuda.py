"""CUDA's runtime on host memory: work is queued, and done when somebody waits for it.

So a result that is read without waiting, memory that is freed too early, and a copy beyond an
allocation come out as wrong values or errors.
"""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


OK = Error.cudaSuccess


class FakeCuda:
    """Stands for the module `cuda.bindings.runtime`; one stream."""

    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )
    cudaStreamNonBlocking = 1
    cudaPitchedPtr = SimpleNamespace
    cudaExtent = SimpleNamespace
    cudaMemcpy3DParms = SimpleNamespace

    def __init__(self, capability: tuple[int, int] = (8, 6), num_devices: int = 1) -> None:
        self.capability, self.num_devices = capability, num_devices
        self.memory: dict[int, Any] = {}
        self.streams: list[int] = []
        self.room_bytes: float = float("inf")
        self.queue: list[Callable[[], object]] = []
        self.captured: list[Callable[[], object]] | None = None
        self.num_launches = self.num_waits = 0
        self.download_sizes: list[int] = []
        self.breaks_capture = False

    def submit(self, work: Callable[[], object]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def check(self, address: int, size_bytes: int) -> None:
        """The memory lies in one allocation."""
        for begin, buffer in self.memory.items():
            if begin <= address and address + size_bytes <= begin + len(buffer):
                return
        raise AssertionError(f"{size_bytes} bytes at {address} are not allocated")

    def cudaGetDeviceCount(self) -> tuple[Error, int]:
        return OK, self.num_devices

    def cudaDeviceGetAttribute(self, attribute: str, device: int) -> tuple[Error, int]:
        return OK, self.capability[("major", "minor").index(attribute)]

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, int]:
        assert flags == self.cudaStreamNonBlocking
        self.streams.append(7)
        return OK, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        self.streams.remove(stream)
        return (OK,)

    def cudaMalloc(self, size_bytes: int) -> tuple[Error, int | None]:
        if sum(map(len, self.memory.values())) + size_bytes > self.room_bytes:
            return Error.cudaErrorMemoryAllocation, None
        buffer = ctypes.create_string_buffer(b"\xa5" * min(size_bytes, 64), size_bytes)
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return OK, address

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[Error]:
        assert self.captured is None and not self.queue, "freed while in use"
        del self.memory[address]
        return (OK,)

    cudaFreeHost = cudaFree

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Error]:
        self.check(address, size)
        self.submit(lambda: ctypes.memset(address, value, size))
        return (OK,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size_bytes: int, kind: int, stream: int
    ) -> tuple[Error]:
        self.check(target, size_bytes)
        self.check(source, size_bytes)

        def copy() -> None:
            if kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost:
                self.download_sizes.append(size_bytes)
            ctypes.memmove(target, source, size_bytes)

        self.submit(copy)
        return (OK,)

    def cudaMemcpy3DAsync(self, job: Any, stream: int) -> tuple[Error]:
        width, height, depth = job.extent.width, job.extent.height, job.extent.depth
        blocks = [
            tuple(
                side.ptr + (outer * side.ysize + inner) * side.pitch
                for side in (job.dstPtr, job.srcPtr)
            )
            for outer in range(depth)
            for inner in range(height)
        ]

        def copy() -> None:
            for target, source in blocks:
                self.check(target, width)
                self.check(source, width)
                ctypes.memmove(target, source, width)

        self.submit(copy)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        assert self.captured is None, "a stream that is captured cannot be waited for"
        self.num_waits += 1
        while self.queue:
            self.queue.pop(0)()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Error]:
        self.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, list[Callable[[], object]]]:
        assert self.captured is not None
        graph, self.captured = self.captured, None
        if self.breaks_capture:
            return Error.cudaErrorStreamCaptureInvalidated, []
        return OK, graph

    def cudaGraphInstantiate(
        self, graph: list[Callable[[], object]], flags: int
    ) -> tuple[Error, list[Callable[[], object]]]:
        return OK, list(graph)

    def cudaGraphDestroy(self, graph: list[Callable[[], object]]) -> tuple[Error]:
        graph.clear()
        return (OK,)

    def cudaGraphExecDestroy(self, executable: list[Callable[[], object]]) -> tuple[Error]:
        executable.clear()
        return (OK,)

    def cudaGraphLaunch(self, executable: list[Callable[[], object]], stream: int) -> tuple[Error]:
        assert executable, "the graph was freed"
        self.num_launches += 1
        self.queue += executable
        return (OK,)
