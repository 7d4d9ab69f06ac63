"""A bundle in Triton Inference Server's Python backend.

`medusa-trt deploy --kind triton` writes a model repository whose `model.py` imports this, beside
the `config.pbtxt` that names the inputs, the outputs and the bundle.
"""

import asyncio
import json
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from medusa_trt.errors import EngineError, MedusaError, PromptError, QueueFullError, TreeError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.scheduler import RequestEvent
from medusa_trt.runtime.session import Generation, MedusaSession, Prompt
from medusa_trt.serving.warm_up import warm_up
from medusa_trt.serving.worker import Ticket, Worker

_POLL_S = 0.05
"""Seconds between two looks at whether a client has left."""

_SAMPLING = {field.name for field in fields(SamplingOptions)}
_GRAMMARS = {
    "json_schema": Grammar.from_json_schema,
    "regex": Grammar.from_regex,
    "grammar": Grammar.from_lark,
}
_REPLY = {
    *("max_new_tokens", "ignore_eos", "stop", "stop_ids", "lookup_ngram"),
    *("acceptance", "posterior_threshold", "posterior_alpha"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
}
_KNOWN = _SAMPLING | _REPLY | _GRAMMARS.keys()
_LISTS = {"stop", "stop_ids"}


@dataclass(frozen=True, eq=False, slots=True)
class _Answer:
    """A reply on its way to a client.

    Attributes:
        sender: sends its parts; it is closed after the last one.
        ticket: the request, with a queue that gets the events.
        streams: whether each step is sent, or the whole reply.
    """

    sender: Any
    ticket: Ticket
    streams: bool


class TritonPythonModel:
    """Answers requests, several at a time; Triton calls these methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle that the config names; the model is ready once it is warmed up.

        Raises:
            MedusaError: the bundle cannot be opened, or numpy does not work here.
        """
        _check_numpy()
        config = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in config.items()}
        batch_size = int(parameters["batch_size"])
        self._max_live = batch_size + int(parameters["max_queue"])
        self._session = MedusaSession(parameters["bundle"], batch_size=batch_size)
        warm_up(self._session)
        self._answers: set[_Answer] = set()
        self._worker = Worker(self._session, note_end=lambda *_: None, report_fault=_log_fault)
        self._loop = asyncio.new_event_loop()
        self._worker.start(self._loop)
        # The scheduler's thread makes steps, and this one sends: a step never waits for a client.
        self._thread = threading.Thread(target=self._loop.run_forever, name="sender", daemon=True)
        self._thread.start()
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch_clients(), self._loop)

    def execute(self, requests: Iterable[Any]) -> None:
        """Reads requests; their replies are sent later, through their response senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                prompt, options, streams = read_request(request)
                made = self._session.make_request(prompt, options, streamed=streams)
                self._check_room()
            except Exception as error:  # Whatever it is, the client waits for an answer.
                _refuse(sender, error)
            else:
                answer = _Answer(sender, Ticket(made, 0, asyncio.Queue()), streams)
                self._answers.add(answer)
                asyncio.run_coroutine_threadsafe(self._send(answer), self._loop)

    def finalize(self) -> None:
        """Ends the replies, and frees the engine."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._watcher.cancel()
        self._worker.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._session.close()

    def _check_room(self) -> None:
        """Checks that not too many requests run or wait.

        Raises:
            QueueFullError: there are too many.
        """
        if len(self._answers) >= self._max_live:
            raise QueueFullError(
                f"{len(self._answers)} replies run or wait, the limit is {self._max_live}: try "
                "again later, or raise max_queue in config.pbtxt"
            )

    async def _send(self, answer: _Answer) -> None:
        """Sends the parts of a reply as they are made."""
        self._worker.submit(answer.ticket)
        try:
            is_last = False
            while not is_last:
                ticket, result = await answer.ticket.results.get()
                is_last = result.event.generation is not None
                _send_event(answer, ticket, result)
        except Exception as error:
            self._worker.cancel(answer.ticket, "disconnected")
            _refuse(answer.sender, error)
        finally:
            self._answers.discard(answer)

    async def _watch_clients(self) -> None:
        """Cancels the replies whose client has left."""
        while True:
            await asyncio.sleep(_POLL_S)
            for answer in list(self._answers):
                if answer.sender.is_cancelled():
                    self._worker.cancel(answer.ticket, "disconnected")

    async def _end(self) -> None:
        self._worker.cancel_all("shutdown")
        while self._answers:
            await asyncio.sleep(_POLL_S)


def read_request(request: Any) -> tuple[Prompt, GenerationOptions, bool]:
    """Reads the prompt, the options, and whether the reply is to be sent part by part.

    Triton passes on as parameters what is no input of the model; so the options have the types that
    JSON gives them, and a wrong one is an error of this module, not one of Triton's own.

    Raises:
        PromptError: something is missing, unknown or of a wrong type.
    """
    parameters = json.loads(request.parameters())
    # Triton's own parameters begin with its name.
    values = {name: value for name, value in parameters.items() if not name.startswith("triton_")}
    messages = values.pop("messages", None)
    options = _parse(_read_text(request, "sampling_parameters") or "{}", "sampling_parameters")
    if not isinstance(options, dict):
        raise PromptError("sampling_parameters is not a JSON object: give names and values")
    if twice := values.keys() & options.keys():
        raise PromptError(f"{min(twice)} is also in sampling_parameters: give it once")
    values |= options
    if unknown := values.keys() - _KNOWN:
        raise PromptError(
            f"unknown in the request: {', '.join(sorted(unknown))}; known are text_input, "
            f"messages, stream, sampling_parameters, {', '.join(sorted(_KNOWN))}"
        )
    prompt = _read_prompt(_read_text(request, "text_input"), messages)
    return prompt, options_from_values(values), bool(_read_one(request, "stream"))


def options_from_values(values: dict[str, Any]) -> GenerationOptions:
    """Makes the options of a reply; names are those of `GenerationOptions` and `SamplingOptions`.

    A grammar is one of json_schema, regex and grammar.

    Raises:
        PromptError: a value is of another type, or out of range.
    """
    values_of_reply = {name: value for name, value in values.items() if name in _REPLY}
    for name in values_of_reply.keys() & _LISTS:
        if not isinstance(values_of_reply[name], list):
            values_of_reply[name] = [values_of_reply[name]]
    grammars = [name for name in _GRAMMARS if name in values]
    if len(grammars) > 1:
        raise PromptError(f"{' and '.join(grammars)} exclude each other: give one")
    for name in grammars:
        if not isinstance(values[name], str | dict if name == "json_schema" else str):
            raise PromptError(f"{name} is {values[name]!r}: it must be text")
        values_of_reply["grammar"] = _GRAMMARS[name](values[name])
    sampling = {name: value for name, value in values.items() if name in _SAMPLING}
    return GenerationOptions(sampling=SamplingOptions(**sampling), **values_of_reply)


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
            f"numpy {np.__version__} does not work with this Triton: use Triton 24.11 or later, or "
            "pip install 'numpy<2'"
        )


def _read_prompt(text: str | None, messages: object) -> Prompt:
    if messages is None and text is not None:
        return text
    if messages is None or text is not None:
        raise PromptError("give either text_input or messages")
    if not isinstance(messages, str):
        raise PromptError(f"messages is {messages!r}: give a list of messages as JSON in a text")
    parsed = _parse(messages, "messages")
    if not isinstance(parsed, list) or not all(isinstance(item, dict) for item in parsed):
        raise PromptError("messages is not a list of objects: give role and content")
    return parsed


def _send_event(answer: _Answer, ticket: Ticket, result: RequestEvent) -> None:
    """Sends what a step did for a reply."""
    sender, final = answer.sender, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    text, generation = result.event.text, result.event.generation
    if result.error is not None:
        _refuse(sender, result.error)
    elif generation is None:
        if answer.streams:
            sender.send(pb_utils.InferenceResponse([_make_text("text_output", text)]))
    elif generation.finish_reason != "cancelled":
        text = text if answer.streams else generation.text
        sender.send(pb_utils.InferenceResponse(_make_outputs(text, generation)), flags=final)
    elif ticket.reason == "disconnected":
        sender.send(flags=final)
    elif ticket.reason == "shutdown":
        _refuse(sender, EngineError("the server has ended: use another one"))
    else:
        _refuse(sender, EngineError("the step failed: the server's log has the error"))


def _make_outputs(text: str, generation: Generation) -> list[Any]:
    """The outputs of a reply's last part."""
    stats = generation.stats
    return [
        _make_text("text_output", text),
        _make_text("finish_reason", generation.finish_reason),
        pb_utils.Tensor("num_input_tokens", np.array([stats.prompt_tokens], np.uint32)),
        pb_utils.Tensor("num_output_tokens", np.array([stats.new_tokens], np.uint32)),
    ]


def _make_text(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], object))


def _refuse(sender: Any, error: Exception) -> None:
    """Sends an error in one line, as the last answer."""
    if not isinstance(error, MedusaError):
        _log_fault(error)
    message = " ".join(str(error).split()) or type(error).__name__
    match error:
        case PromptError() | TreeError():
            code = pb_utils.TritonError.INVALID_ARG
        case QueueFullError():
            code = pb_utils.TritonError.UNAVAILABLE
        case _:
            code = pb_utils.TritonError.INTERNAL
    sender.send(
        pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )


def _log_fault(error: BaseException) -> None:
    """Writes an error that nobody expected to Triton's log."""
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PromptError(f"{name} is not JSON ({error})") from error


def _read_text(request: Any, name: str) -> str | None:
    value = _read_one(request, name)
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8") from error


def _read_one(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]
