"""What a `model.py` sees of Triton: requests, tensors and senders."""

import json
import threading
import time
from types import ModuleType
from typing import Any

import numpy as np

FINAL = 1
WAIT_S = 60


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array

    def to_dlpack(self) -> Any:
        return self.array

    @staticmethod
    def from_dlpack(name: str, array: Any) -> "Tensor":
        """As a backend does that was compiled for this numpy."""
        return Tensor(name, array.copy())


class TritonError(str):
    """An error; its codes are their names here."""

    INTERNAL, INVALID_ARG, UNAVAILABLE = "INTERNAL", "INVALID_ARG", "UNAVAILABLE"
    code: str

    def __new__(cls, message: str, code: str = INTERNAL) -> "TritonError":
        error = super().__new__(cls, message)
        error.code = code
        return error


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.error = error
        self.outputs = {tensor.name: tensor.as_numpy() for tensor in output_tensors}


class Logger:
    """Writes nothing."""

    @staticmethod
    def log_error(message: str) -> None: ...


class Sender:
    """Collects responses; `cancels_after` so many of them the client is gone."""

    def __init__(self, cancels_after: int | None = None) -> None:
        self.responses: list[InferenceResponse] = []
        self.cancels_after = cancels_after
        self.first_s = self.last_s = 0.0
        self.finished = threading.Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.finished.is_set(), "a response after the final one"
        if response is not None:
            self.last_s = time.perf_counter()
            self.first_s = self.first_s or self.last_s
            self.responses.append(response)
        if flags == FINAL:
            self.finished.set()

    def is_cancelled(self) -> bool:
        return self.cancels_after is not None and len(self.responses) >= self.cancels_after


class Request:
    """A request as the HTTP endpoint makes it: flat tensors, text as bytes.

    Fields that are no inputs of the model are parameters of the request.
    """

    def __init__(self, sender: Sender, names: set[str], **fields: Any) -> None:
        self.sender = sender
        self.inputs = {
            name: Tensor(name, _array(value)) for name, value in fields.items() if name in names
        }
        self._parameters = {name: value for name, value in fields.items() if name not in names}

    def parameters(self) -> str:
        return json.dumps(self._parameters | {"triton_enable_empty_final_response": False})

    def get_response_sender(self) -> Sender:
        return self.sender


def _array(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if isinstance(items[0], str):
        return np.array([item.encode() for item in items], object)
    return np.array(items)


def triton_python_backend_utils() -> ModuleType:
    """The module of that name, as far as it is used."""
    module = ModuleType("triton_python_backend_utils")
    values: dict[str, Any] = {
        "Tensor": Tensor,
        "InferenceResponse": InferenceResponse,
        "TritonError": TritonError,
        "Logger": Logger,
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": FINAL,
        "get_input_tensor_by_name": lambda request, name: request.inputs.get(name),
    }
    for name, value in values.items():
        setattr(module, name, value)
    return module
