"""A bundle in Triton Inference Server's Python backend.

`medusa-trt deploy --kind triton` writes this file into a model repository as `model.py`, beside the
`config.pbtxt` that names the inputs, the outputs and the bundle.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession, Prompt, StreamEvent

_SAMPLING = {field.name for field in fields(SamplingOptions)}
_OWN = {"max_new_tokens", "ignore_eos", "stop", "stop_ids", "acceptance", "lookup_ngram"}


class TritonPythonModel:
    """Answers one request after the other; Triton queues the others and calls these methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle that the config names."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._session = MedusaSession(parameters["bundle"]["string_value"])

    def execute(self, requests: Iterable[Any]) -> None:
        """Answers requests through their response senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._answer(request, sender)
            except MedusaError as error:
                message = " ".join(str(error).split())
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message)))
            finally:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        """Frees the engine."""
        self._session.close()

    def _answer(self, request: Any, sender: Any) -> None:
        streams = bool(_value(request, "stream", False))
        options = options_from_json(_text(request, "sampling_parameters") or "{}")
        texts = []
        for event in self._session.stream(self._prompt(request), options):
            texts.append(event.text)
            if streams or event.generation is not None:
                sender.send(pb_utils.InferenceResponse(_outputs(event, "".join(texts))))
                texts.clear()
            if sender.is_cancelled():
                self._session.cancel()

    def _prompt(self, request: Any) -> Prompt:
        text, messages = _text(request, "text_input"), _text(request, "messages")
        if (text is None) == (messages is None):
            raise PromptError("give either text_input or messages")
        if messages is not None:
            found = _parsed(messages, "messages")
            if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                raise PromptError("messages is not a list of objects: give role and content")
            return found
        assert text is not None
        return text


def options_from_json(text: str) -> GenerationOptions:
    """Options of a reply, by the names of `GenerationOptions` and `SamplingOptions`.

    Raises:
        PromptError: no JSON object, an unknown name, or a value out of range.
    """
    values = _parsed(text, "sampling_parameters")
    if not isinstance(values, dict):
        raise PromptError("sampling_parameters is not a JSON object: give names and values")
    if unknown := values.keys() - _SAMPLING - _OWN:
        raise PromptError(
            f"unknown in sampling_parameters: {', '.join(sorted(unknown))}; known are "
            f"{', '.join(sorted(_SAMPLING | _OWN))}"
        )
    own = {name: value for name, value in values.items() if name in _OWN}
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    try:
        sampling = {name: value for name, value in values.items() if name in _SAMPLING}
        return GenerationOptions(sampling=SamplingOptions(**sampling), **own)
    except TypeError as error:
        raise PromptError(f"sampling_parameters: {error}: give numbers") from error


def _outputs(event: StreamEvent, text: str) -> list[Any]:
    outputs = [pb_utils.Tensor("text_output", np.array([text.encode()], object))]
    if event.generation is not None:
        stats = event.generation.stats
        reason = np.array([event.generation.finish_reason.encode()], object)
        outputs += [
            pb_utils.Tensor("finish_reason", reason),
            pb_utils.Tensor("num_input_tokens", np.array([stats.prompt_tokens], np.uint32)),
            pb_utils.Tensor("num_output_tokens", np.array([stats.new_tokens], np.uint32)),
        ]
    return outputs


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PromptError(f"{name} is not JSON ({error})") from error


def _text(request: Any, name: str) -> str | None:
    value = _value(request, name, None)
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8") from error


def _value(request: Any, name: str, default: Any) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]
