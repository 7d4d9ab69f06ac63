"""A bundle in Triton Inference Server's Python backend.

`medusa-trt deploy --kind triton` writes this file into a model repository as `model.py`, beside the
`config.pbtxt` that names the inputs, the outputs and the bundle.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from medusa_trt.errors import EngineError, MedusaError, PromptError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession, Prompt, StreamEvent

_SAMPLING = {field.name for field in fields(SamplingOptions)}
_OWN = {
    *("max_new_tokens", "ignore_eos", "stop", "stop_ids", "acceptance", "lookup_ngram"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
}
_LISTS = {"stop", "stop_ids"}


class TritonPythonModel:
    """Answers requests, several at a time; Triton calls these methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle that the config names; the model is ready once that has answered.

        Raises:
            MedusaError: the bundle cannot be opened, or numpy does not work here.
        """
        _check_numpy()
        config = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in config.items()}
        batch_size = int(parameters["batch_size"])
        self._session = MedusaSession(parameters["bundle"], batch_size=batch_size)
        self._session.generate([0], GenerationOptions(max_new_tokens=1))
        self._pool = ThreadPoolExecutor(batch_size)

    def execute(self, requests: Iterable[Any]) -> None:
        """Reads requests; their replies are sent later, through their response senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                values = read_values(request)
                prompt = _read_prompt(request)
                options = options_from_values(values)
                streams = bool(_read_one(request, "stream"))
            except MedusaError as error:
                _refuse(sender, error)
            else:
                self._pool.submit(self._answer, sender, prompt, options, streams)

    def finalize(self) -> None:
        """Ends the replies, and frees the engine."""
        self._session.cancel()
        self._pool.shutdown(cancel_futures=True)
        self._session.close()

    def _answer(
        self, sender: Any, prompt: Prompt, options: GenerationOptions, streams: bool
    ) -> None:
        texts = []
        try:
            events = self._session.stream(prompt, options)
            for event in events:
                if sender.is_cancelled():
                    events.close()
                    break
                texts.append(event.text)
                if streams or event.generation is not None:
                    sender.send(pb_utils.InferenceResponse(_outputs(event, "".join(texts))))
                    texts.clear()
        except Exception as error:  # whatever it is, the client waits for an answer
            _refuse(sender, error)
        else:
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def read_values(request: Any) -> dict[str, Any]:
    """Reads the options of a reply: inputs of their names, and the JSON of sampling_parameters.

    Raises:
        PromptError: no JSON object, or an unknown name.
    """
    values = _parse(_read_text(request, "sampling_parameters") or "{}", "sampling_parameters")
    if not isinstance(values, dict):
        raise PromptError("sampling_parameters is not a JSON object: give names and values")
    if unknown := values.keys() - _SAMPLING - _OWN:
        raise PromptError(
            f"unknown in sampling_parameters: {', '.join(sorted(unknown))}; known are "
            f"{', '.join(sorted(_SAMPLING | _OWN))}"
        )
    # Triton passes fields of a request on that are no inputs; its own ones begin with its name.
    others = {name for name in json.loads(request.parameters()) if not name.startswith("triton_")}
    if others:
        raise PromptError(
            f"unknown in the request: {', '.join(sorted(others))}; known are text_input, messages, "
            f"stream, sampling_parameters, {', '.join(sorted(_SAMPLING | _OWN))}"
        )
    for name in sorted(_SAMPLING | _OWN):
        if (array := _read_array(request, name)) is not None:
            if name in values:
                raise PromptError(f"{name} is also in sampling_parameters: give it once")
            items = [_decode(item, name) for item in array.reshape(-1).tolist()]
            values[name] = items if name in _LISTS else items[0]
    return values


def options_from_values(values: Mapping[str, Any]) -> GenerationOptions:
    """Options of a reply, by the names of `GenerationOptions` and `SamplingOptions`.

    Raises:
        PromptError: a value is of another type, or out of range.
    """
    own = {name: value for name, value in values.items() if name in _OWN}
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    sampling = {name: value for name, value in values.items() if name in _SAMPLING}
    return GenerationOptions(sampling=SamplingOptions(**sampling), **own)


def _check_numpy() -> None:
    """Checks that tensors arrive as they were sent.

    Python backends that were compiled for numpy 1 give every element of a tensor the value of its
    first one under numpy 2, and their process ends at the first text (docs/decisions/tensorrt.md).

    Raises:
        EngineError: a tensor changes.
    """
    sent = np.arange(3, dtype=np.int64)
    arrived = pb_utils.Tensor.from_dlpack("check", pb_utils.Tensor("check", sent).to_dlpack())
    if arrived.as_numpy().tolist() != sent.tolist():
        raise EngineError(
            f"numpy {np.__version__} does not work with this Triton: pip install 'numpy<2'"
        )


def _read_prompt(request: Any) -> Prompt:
    text, messages = _read_text(request, "text_input"), _read_text(request, "messages")
    if messages is None and text is not None:
        return text
    if messages is None or text is not None:
        raise PromptError("give either text_input or messages")
    found = _parse(messages, "messages")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise PromptError("messages is not a list of objects: give role and content")
    return found


def _refuse(sender: Any, error: Exception) -> None:
    """Sends an error in one line, as the last answer."""
    message = " ".join(str(error).split()) or type(error).__name__
    sender.send(
        pb_utils.InferenceResponse(error=pb_utils.TritonError(message)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )


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


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PromptError(f"{name} is not JSON ({error})") from error


def _read_text(request: Any, name: str) -> str | None:
    value = _read_one(request, name)
    return None if value is None else str(_decode(value, name))


def _decode(value: Any, name: str) -> Any:
    """The value, whose bytes are text."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8") from error


def _read_one(request: Any, name: str) -> Any:
    array = _read_array(request, name)
    return None if array is None else array.reshape(-1)[0]


def _read_array(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
