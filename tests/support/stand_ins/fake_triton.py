"""What a `model.py` sees of Triton: requests, tensors and senders."""

from types import ModuleType
from typing import Any

import numpy as np

FINAL = 1


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: str | None = None) -> None:
        self.error = error
        self.outputs = {tensor.name: tensor.as_numpy() for tensor in output_tensors}


class Sender:
    """Collects responses; `cancels_after` so many of them the client is gone."""

    def __init__(self, cancels_after: int | None = None) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_final, self.cancels_after = False, cancels_after

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.is_final, "a response after the final one"
        if response is not None:
            self.responses.append(response)
        self.is_final = flags == FINAL

    def is_cancelled(self) -> bool:
        return self.cancels_after is not None and len(self.responses) >= self.cancels_after


class Request:
    """A request as the HTTP endpoint makes it: one-element tensors, text as bytes."""

    def __init__(self, sender: Sender, **inputs: str | bool) -> None:
        self.sender = sender
        self.inputs = {
            name: Tensor(
                name,
                np.array([value.encode()], object) if isinstance(value, str) else np.array([value]),
            )
            for name, value in inputs.items()
        }

    def get_response_sender(self) -> Sender:
        return self.sender


def triton_python_backend_utils() -> ModuleType:
    """The module of that name, as far as it is used."""
    module = ModuleType("triton_python_backend_utils")
    values: dict[str, Any] = {
        "Tensor": Tensor,
        "InferenceResponse": InferenceResponse,
        "TritonError": str,
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": FINAL,
        "get_input_tensor_by_name": lambda request, name: request.inputs.get(name),
    }
    for name, value in values.items():
        setattr(module, name, value)
    return module
