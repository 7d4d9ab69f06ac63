"""Sessions: they turn prompts into replies, one at a time or as a batch."""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from medusa_trt.errors import (
    EngineError,
    GenerationError,
    MedusaError,
    PromptError,
    PromptLengthError,
)
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.calibrated_times import read_step_times
from medusa_trt.runtime.decoding.choosing import Chooser
from medusa_trt.runtime.decoding.decoder import Decoder
from medusa_trt.runtime.decoding.drafting import TokenLookup
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.engines.backends import engine_from_backend
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions, add_to_seed
from medusa_trt.runtime.reply import FinishReason, Generation, GenerationStats, Reply, StreamEvent
from medusa_trt.runtime.scheduler import Request, RequestEvent, Scheduler
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import ChatPrompt, Prompt, is_begun, read_prompt, read_prompts
from medusa_trt.runtime.text.stop_texts import find_stop_texts
from medusa_trt.tree_configs import MedusaTree
from medusa_trt.types_of_options import read_value

__all__ = [
    "Generation",
    "GenerationOptions",
    "GenerationStats",
    "MedusaSession",
    "Prompt",
    "SamplingOptions",
    "StreamEvent",
]

_NUM_SPARE_ROWS = 64
"""Cache rows after the longest sequence; the largest published trees have 64 nodes."""


class MedusaSession:
    """Generates replies with one bundle on one engine; a context manager that frees the engine.

    The KV cache keeps earlier prompts and replies in its slots, so a prompt is only prefilled from
    the first token that differs. Replies may be generated at the same time, also from several
    threads: up to `batch_size` run together, the others wait.

    Attributes:
        scheduler: runs the requests; a server may use it directly, from one thread.
        decoder: runs the scheduler's steps.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        engine: Engine | None = None,
        backend: str | None = None,
        max_length: int | None = None,
        batch_size: int = 1,
        num_threads: int | None = None,
    ) -> None:
        """Opens a bundle and creates its engine.

        Args:
            bundle: an opened bundle, or its folder.
            engine: an engine to use instead of the backend's; it is closed with the session.
            backend: name of the program that runs the graphs, in `runtime/engines/backends.py`; by
                default the one of the bundle's target.
            max_length: maximum length of prompt and reply together, in tokens; by default what the
                bundle allows.
            batch_size: largest number of replies that run together.
            num_threads: threads for one step; the engine's choice by default.

        Raises:
            BundleError: the bundle is missing, truncated or changed.
            EngineError: the engine cannot be created.
            PromptError: `max_length` is more than the bundle allows, or less than 2.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        engine = read_value("engine", engine, Engine | None, EngineError)
        batch_size = read_value("batch_size", batch_size, int, EngineError)
        num_threads = read_value("num_threads", num_threads, int | None, EngineError)
        max_length = read_value("max_length", max_length, int | None, PromptError)
        limit = self.bundle.manifest.model.max_length
        self.max_length = limit if max_length is None else max_length
        if not 2 <= self.max_length <= limit:
            raise PromptError(
                f"max_length is {self.max_length}: this bundle allows 2 to {limit}; "
                "a longer one needs an export with a larger --max-length"
            )
        self.text = TextCodec(self.bundle)
        num_spare_rows = max(_NUM_SPARE_ROWS, self.bundle.tree.num_nodes)
        self.engine: Engine = engine or engine_from_backend(
            backend,
            self.bundle,
            capacity=self.max_length + num_spare_rows,
            batch_size=batch_size,
            num_threads=num_threads,
        )
        heads, target = self.bundle.manifest.heads, self.bundle.manifest.target
        self.decoder = Decoder(
            self.engine,
            num_heads=0 if heads is None else heads.num_heads,
            top_k=0 if heads is None else heads.top_k,
            min_rows=target.min_rows,
            step_times=None if engine or backend else read_step_times(self.bundle, num_threads),
        )
        self.scheduler = Scheduler(self.engine, self.decoder)
        self._lock = threading.Lock()
        self._events: dict[int, deque[RequestEvent]] = {}
        self._num_cancels = 0

    def __enter__(self) -> "MedusaSession":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine; the session cannot be used afterwards."""
        self.engine.close()

    def cancel(self) -> None:
        """Ends all replies after the current step; another thread or a callback calls it."""
        self._num_cancels += 1
        self.scheduler.cancel_all()

    def encode(self, prompt: Prompt) -> list[int]:
        """Encodes a prompt as token ids; the model's chat template renders messages.

        Raises:
            PromptError: the prompt is none, the text is not valid Unicode, or the model has no chat
                template for messages or its template refuses them.
        """
        read = read_prompt(prompt)
        if isinstance(read, str):
            return self.text.encode(read)
        return self.text.encode_chat(read) if isinstance(read, ChatPrompt) else read

    def generate(self, prompt: Prompt, options: GenerationOptions | None = None) -> Generation:
        """Generates a reply and returns it whole; see `stream`."""
        request = self.make_request(prompt, options, streamed=False)
        for event in self._stream(request):
            if event.generation is not None:
                return event.generation
        raise AssertionError("a stream ends with its generation")

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None
    ) -> Generator[StreamEvent, None, None]:
        """Generates a reply, and yields an event for each step.

        Closing the iterator, `cancel` and Ctrl-C end the reply; the session stays usable. After
        `cancel` and Ctrl-C, the last event holds what was generated so far. Streams that run at
        the same time, in one thread or several, share the steps.

        Args:
            prompt: text, token ids, or messages.
            options: see `GenerationOptions`.

        Raises:
            PromptError: the prompt is empty or does not fit into the cache.
            TreeError: the tree needs more heads or candidates than there are.
            EngineError: the engine failed before the first token, or is closed.
            GenerationError: the engine failed later; the error holds what was generated so far.
        """
        return self._stream(self.make_request(prompt, options))

    def generate_batch(
        self, prompts: Sequence[Prompt], options: GenerationOptions | None = None
    ) -> list[Generation]:
        """Generates the replies to several prompts, `batch_size` at a time.

        The next prompt takes the slot of a finished reply; an empty slot costs nothing. Prompt i is
        sampled with seed + i. Each reply equals the one that its prompt gets alone.

        Args:
            prompts: any number of prompts, of any lengths.
            options: options of all replies.

        Raises:
            PromptError: a prompt is empty or does not fit into the cache.
            EngineError: the engine failed before the first token of a reply, or is closed.
            GenerationError: the engine failed later; see `stream`. The other replies are lost.
        """
        options = _read_options(options)
        requests = [
            self.make_request(prompt, add_to_seed(options, index), streamed=False)
            for index, prompt in enumerate(read_prompts(prompts))
        ]
        done: list[Generation] = []
        for result in self.answer(requests):
            if isinstance(result, MedusaError):
                raise result
            done.append(result)
        return done

    def answer(
        self, requests: Iterable[Request]
    ) -> Generator[Generation | MedusaError, None, None]:
        """Yields the results of requests in their order, while `batch_size` of them run together.

        A reply that ends before an earlier one waits for its turn. A request is taken from the
        iterable shortly before it can run. Closing the iterator and Ctrl-C end all of them.

        Args:
            requests: made by `make_request` with `streamed` false.

        Yields:
            The reply, or the error that ended it: an EngineError before its first token, and later
            a GenerationError.
        """
        source, pending, num_cancels = iter(requests), deque[int](), self._num_cancels
        try:
            while True:
                while self.scheduler.num_waiting < self.engine.batch_size:
                    if (request := next(source, None)) is None:
                        break
                    pending.append(self._add(request))
                    if self._num_cancels != num_cancels:
                        self.scheduler.cancel(pending[-1])
                if not pending:
                    return
                self._run_step(pending[0])
                if (result := self._take_result(pending[0])) is not None:
                    self._leave(pending.popleft())
                    yield result
        finally:
            for number in pending:
                self._leave(number)

    def _take_result(self, number: int) -> Generation | MedusaError | None:
        """Takes the events of a request; returns its reply or error, or None before its end."""
        try:
            while self._events[number]:
                if (generation := self._take_event(number).generation) is not None:
                    return generation
        except MedusaError as error:
            return error
        return None

    def _stream(self, request: Request) -> Generator[StreamEvent, None, None]:
        number = self._add(request)
        try:
            while True:
                try:
                    event = self._next_event(number)
                except KeyboardInterrupt:
                    self.scheduler.cancel(number)
                    continue
                yield event
                if event.generation is not None:
                    return
        finally:
            self._leave(number)

    def _add(self, request: Request) -> int:
        with self._lock:
            number = self.scheduler.add(request)
            self._events[number] = deque()
            return number

    def _leave(self, number: int) -> None:
        """Ends a request that nobody reads any more."""
        if self._events.pop(number, None) is not None:
            self.scheduler.cancel(number)

    def _next_event(self, number: int) -> StreamEvent:
        """Runs steps until there is an event of this request; other requests' events are kept.

        Raises:
            EngineError: the request ended by an error before its first token.
            GenerationError: it ended by an error later.
        """
        while not self._events[number]:
            self._run_step(number)
        return self._take_event(number)

    def _run_step(self, number: int) -> None:
        """Runs a step unless there is an event of this request; keeps the events of the others."""
        with self._lock:
            if self._events[number]:
                return
            for result in self.scheduler.step():
                queue = self._events.get(result.request_id)
                if queue is not None:
                    queue.append(result)

    def _take_event(self, number: int) -> StreamEvent:
        """Takes the next event of a request; raises what `_next_event` raises."""
        result = self._events[number].popleft()
        if result.error is not None:
            partial = result.event.generation
            if partial is None or not partial.token_ids:
                raise result.error
            raise GenerationError(str(result.error), partial) from result.error
        return result.event

    def make_request(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        streamed: bool = True,
        shown_ids: Sequence[int] = (),
    ) -> Request:
        """Makes a request that can be added to `scheduler` once.

        Args:
            prompt: text, token ids, or messages.
            options: see `GenerationOptions`.
            streamed: whether every step has an event, or the last one alone.
            shown_ids: special tokens whose names the text of the reply shows.

        Raises:
            PromptError: the prompt is empty or does not fit into the cache.
            TreeError: the tree needs more heads or candidates than there are.
        """
        options = self.text.prepare_options(_read_options(options))
        options = self.bundle.manifest.fill_thresholds(options)
        prompt_ids = self.encode(prompt)
        self._check(prompt_ids, options)
        num_free = self._max_sequence_length(options) - len(prompt_ids)
        limit = min(num_free, options.max_new_tokens or num_free)
        reason: FinishReason = "length" if limit == options.max_new_tokens else "cache_full"
        eos_token_ids = () if options.ignore_eos else self.bundle.manifest.model.eos_token_ids
        stop = find_stop_texts(options.stop, self.text.special_tokens, shown_ids)
        text_stream = self.text.stream(stop.shown)
        # What follows a text begins with its space, which tokenizers drop at the beginning of one.
        before = text_stream.push(prompt_ids) if options.echo or is_begun(prompt) else ""
        chooser = Chooser(options, prompt_ids, self.engine.capacity + 1)
        reply = Reply(
            num_prompt=len(prompt_ids),
            limit=limit,
            limit_reason=reason,
            stop_ids=[
                *eos_token_ids,
                *options.stop_ids,
            ],
            stop=stop,
            text_stream=text_stream,
            text=before if options.echo else "",
            prompt_logprobs=() if chooser.prompt_logprobs is None else chooser.prompt_logprobs,
            streamed=streamed,
        )
        lookup = TokenLookup(prompt_ids, options.lookup_ngram) if options.lookup_ngram else None
        state = SequenceState(slot=-1, chooser=chooser, tree=self._tree(options), lookup=lookup)
        return Request(prompt_ids=prompt_ids, reply=reply, state=state)

    def _tree(self, options: GenerationOptions) -> MedusaTree | None:
        """The draft tree; None where a new one is grown at each step.

        The tokens of typical acceptance depend on the tree, so it always has a fixed one.
        """
        grows = options.tree is None and options.rule != "typical"
        if grows and self.decoder.drafter.grows_trees:
            return None
        return options.tree or self.bundle.tree

    def _max_sequence_length(self, options: GenerationOptions) -> int:
        """Length of the longest sequence that leaves room for the nodes of a step."""
        tree = self._tree(options)
        num_nodes = self.bundle.manifest.target.min_rows if tree is None else tree.num_nodes
        return min(self.max_length, self.engine.capacity - num_nodes)

    def _check(self, prompt_ids: Sequence[int], options: GenerationOptions) -> None:
        model = self.bundle.manifest.model
        if options.stop_ids and max(options.stop_ids) >= model.vocab_size:
            raise PromptError(
                f"stop_ids has {max(options.stop_ids)}: this model's token ids are 0 to "
                f"{model.vocab_size - 1}"
            )
        if options.tree is not None:
            self.bundle.manifest.check_tree(options.tree)
        if not prompt_ids:
            raise PromptError("the prompt is empty: give at least one token")
        limit = self._max_sequence_length(options)
        if len(prompt_ids) >= limit:
            can_be_longer = self.max_length < model.max_length
            raise PromptLengthError(
                f"the prompt has {len(prompt_ids)} tokens, the cache holds {limit} with the reply: "
                f"shorten the prompt{' or raise --max-length' * can_be_longer}"
            )
        if not all(0 <= token < model.vocab_size for token in prompt_ids):
            raise PromptError(f"the prompt holds a token id outside 0 to {model.vocab_size - 1}")


def _read_options(options: GenerationOptions | None) -> GenerationOptions:
    read = read_value("options", options, GenerationOptions | None, PromptError)
    return GenerationOptions() if read is None else read
