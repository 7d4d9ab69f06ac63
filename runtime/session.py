"""Sessions: they turn prompts into replies, one at a time or as a batch."""

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medusa_trt.errors import EngineError, GenerationError, PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.choosing import Chooser
from medusa_trt.runtime.decoding import Added, Decoder, PrefillCancelled, SequenceState
from medusa_trt.runtime.engines.backends import engine_from_backend
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.reply import FinishReason, Generation, GenerationStats, Reply, StreamEvent
from medusa_trt.runtime.text import Message, TextCodec
from medusa_trt.tree_configs import MedusaTree

__all__ = [
    "Generation",
    "GenerationOptions",
    "GenerationStats",
    "MedusaSession",
    "Prompt",
    "SamplingOptions",
    "StreamEvent",
]

Prompt = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or the messages of a conversation."""

_NUM_SPARE_ROWS = 64
"""Cache rows after the longest sequence; the largest published trees have 64 nodes."""


@dataclass(slots=True)
class _RunningReply:
    """A reply in progress; `index` is the position of its prompt in a batch."""

    index: int
    prompt_ids: list[int]
    reply: Reply
    chooser: Chooser
    state: SequenceState | None = None


class MedusaSession:
    """Generates replies with one bundle on one engine; a context manager that frees the engine.

    The KV cache keeps the last prompt and its reply, so the next prompt is only prefilled from the
    first token that differs. One reply (or batch) runs at a time; a second one, also from another
    thread, is refused. Several sessions do not affect each other.
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
            batch_size: number of sequences in one step of `generate_batch`.
            num_threads: threads for one step; the engine's choice by default.

        Raises:
            BundleError: the bundle is missing, truncated or changed.
            EngineError: the engine cannot be created.
            PromptError: `max_length` is more than the bundle allows, or less than 2.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
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
        self._cached_ids: list[int] = []
        self._busy = threading.Lock()
        self._cancelled = threading.Event()

    def __enter__(self) -> "MedusaSession":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine; the session cannot be used afterwards."""
        self.engine.close()

    def cancel(self) -> None:
        """Ends the running reply after its current step; another thread or a callback calls it."""
        self._cancelled.set()

    def encode(self, prompt: Prompt) -> list[int]:
        """Encodes a prompt as token ids; the model's chat template renders messages.

        Raises:
            PromptError: the text is not valid Unicode, or the model has no chat template for
                messages or its template refuses them.
        """
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        ids = [item for item in prompt if isinstance(item, int)]
        if len(ids) == len(prompt):
            return ids
        return self.text.encode_chat([item for item in prompt if not isinstance(item, int)])

    def generate(self, prompt: Prompt, options: GenerationOptions | None = None) -> Generation:
        """Generates a reply and returns it whole; see `stream`."""
        options = self.text.prepare_options(options or GenerationOptions())
        prompt_ids = self.encode(prompt)
        self._check(prompt_ids, options)
        for event in self._stream(prompt_ids, options, streamed=False):
            if event.generation is not None:
                return event.generation
        raise AssertionError("a stream ends with its generation")

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None
    ) -> Generator[StreamEvent, None, None]:
        """Generates a reply, and yields an event for each step.

        Closing the iterator, `cancel` and Ctrl-C end the reply; the session stays usable. After
        `cancel` and Ctrl-C, the last event holds what was generated so far.

        Args:
            prompt: text, token ids, or messages.
            options: see `GenerationOptions`.

        Raises:
            PromptError: the prompt is empty or does not fit into the cache.
            TreeError: the tree needs more heads or candidates than there are.
            EngineError: the engine failed before the first token, is closed or is busy.
            GenerationError: the engine failed later; the error holds what was generated so far.
        """
        options = self.text.prepare_options(options or GenerationOptions())
        prompt_ids = self.encode(prompt)
        self._check(prompt_ids, options)
        return self._stream(prompt_ids, options)

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
            EngineError: the engine failed, is closed or is busy.
        """
        options = self.text.prepare_options(options or GenerationOptions())
        all_ids = [self.encode(prompt) for prompt in prompts]
        for prompt_ids in all_ids:
            self._check(prompt_ids, options)
        with self._run_exclusively():
            return self._run_batch(all_ids, options)

    def _stream(
        self, prompt_ids: list[int], options: GenerationOptions, streamed: bool = True
    ) -> Generator[StreamEvent, None, None]:
        with self._run_exclusively():
            num_cached = _common_length(self._cached_ids, prompt_ids[:-1])
            del self._cached_ids[num_cached:]
            running = self._begin(0, prompt_ids, num_cached, options, streamed)
            decoder = self._make_decoder(options)
            reply, event = running.reply, None
            try:
                while True:
                    added = self._advance(decoder, running, num_cached)
                    event = reply.add(added, decoder.engine_s)
                    if reply.finish_reason is not None:
                        break
                    if event is not None:
                        yield event
                    if self._cancelled.is_set():
                        event, reply.finish_reason = None, "cancelled"
                        break
            except (KeyboardInterrupt, PrefillCancelled):
                event, reply.finish_reason = None, "cancelled"
            except EngineError as error:
                if not reply.token_ids:
                    raise
                partial = reply.finish(decoder.engine_s, "error")
                raise GenerationError(str(error), partial) from error
            last = event or StreamEvent([], reply.take_new_text(), 0)
            yield last._replace(generation=reply.finish(decoder.engine_s))

    def _advance(self, decoder: Decoder, running: _RunningReply, num_cached: int) -> Added:
        """Runs the prefill or one step, and records which tokens the cache holds."""
        if running.state is None:
            running.state, added = decoder.start(0, running.prompt_ids, num_cached, running.chooser)
            self._cached_ids[:] = running.prompt_ids
            return added
        root_token = running.state.root_token
        added = decoder.step([running.state])[0]
        self._cached_ids += [root_token, *added[0][:-1]]
        return added

    def _run_batch(self, all_ids: list[list[int]], options: GenerationOptions) -> list[Generation]:
        self._cached_ids.clear()
        decoder = self._make_decoder(options)
        waiting = [(index, ids, _add_to_seed(options, index)) for index, ids in enumerate(all_ids)]
        waiting.reverse()
        active: list[_RunningReply] = []
        done: dict[int, Generation] = {}
        while waiting or active:
            while waiting and len(active) < self.engine.batch_size:
                index, ids, reply_options = waiting.pop()
                running = self._begin(index, ids, 0, reply_options)
                for other in active:
                    # The prefill overwrites the engine's outputs, of which `hidden` is a view.
                    assert other.state is not None
                    other.state.hidden = other.state.hidden.copy()
                try:
                    running.state, added = decoder.start(len(active), ids, 0, running.chooser)
                except PrefillCancelled:
                    done[index] = running.reply.finish(decoder.engine_s, "cancelled")
                    continue
                running.reply.add(added, decoder.engine_s)
                active.append(running)
                self._retire(active, done, decoder)
            if active:
                states = [running.state for running in active if running.state is not None]
                for running, added in zip(active, decoder.step(states), strict=True):
                    running.reply.add(added, decoder.engine_s)
                if self._cancelled.is_set():
                    for running in active:
                        running.reply.finish_reason = "cancelled"
                    waiting.clear()
                self._retire(active, done, decoder)
        return [done[index] for index in sorted(done)]

    def _retire(
        self, active: list[_RunningReply], done: dict[int, Generation], decoder: Decoder
    ) -> None:
        """Removes finished replies, and moves the sequence of the last slot into the free slot."""
        for slot in range(len(active) - 1, -1, -1):
            running = active[slot]
            if running.reply.finish_reason is None:
                continue
            done[running.index] = running.reply.finish(decoder.engine_s)
            last = active.pop()
            if last is not running:
                assert last.state is not None
                self.engine.move(last.state.slot, slot, last.state.past_length)
                last.state.slot = slot
                active[slot] = last

    def _begin(
        self,
        index: int,
        prompt_ids: list[int],
        num_cached: int,
        options: GenerationOptions,
        streamed: bool = False,
    ) -> _RunningReply:
        num_free = self._max_sequence_length(options) - len(prompt_ids)
        limit = min(num_free, options.max_new_tokens or num_free)
        reason: FinishReason = "length" if limit == options.max_new_tokens else "cache_full"
        eos_token_ids = () if options.ignore_eos else self.bundle.manifest.model.eos_token_ids
        special_ids = [self.text.special_token_id(text) for text in options.stop]
        reply = Reply(
            num_prompt=len(prompt_ids),
            num_cached=num_cached,
            limit=limit,
            limit_reason=reason,
            stop_ids=[
                *eos_token_ids,
                *options.stop_ids,
                *(token_id for token_id in special_ids if token_id is not None),
            ],
            stop=options.stop,
            text_stream=self.text.stream(),
            text=self.text.decode(prompt_ids) if options.echo else "",
            streamed=streamed,
        )
        chooser = Chooser(options, prompt_ids, self.engine.capacity + 1)
        return _RunningReply(index, prompt_ids, reply, chooser)

    def _make_decoder(self, options: GenerationOptions) -> Decoder:
        target, heads = self.bundle.manifest.target, self.bundle.manifest.heads
        return Decoder(
            self.engine,
            self._tree(options),
            options.sampling,
            top_k=None if heads is None else heads.top_k,
            min_rows=target.min_rows,
            prefill_chunk=self.engine.prefill_chunk,
            lookup_ngram=options.lookup_ngram,
            is_cancelled=self._cancelled.is_set,
        )

    def _tree(self, options: GenerationOptions) -> MedusaTree:
        return options.tree or self.bundle.tree

    def _max_sequence_length(self, options: GenerationOptions) -> int:
        """Length of the longest sequence that leaves room for the nodes of a step."""
        return min(self.max_length, self.engine.capacity - self._tree(options).num_nodes)

    def _check(self, prompt_ids: Sequence[int], options: GenerationOptions) -> None:
        model = self.bundle.manifest.model
        self.bundle.manifest.check_tree(self._tree(options))
        if not prompt_ids:
            raise PromptError("the prompt is empty: give at least one token")
        limit = self._max_sequence_length(options)
        if len(prompt_ids) >= limit:
            can_be_longer = self.max_length < model.max_length
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens, the cache holds {limit} with the reply: "
                f"shorten the prompt{' or raise --max-length' * can_be_longer}"
            )
        if not all(0 <= token < model.vocab_size for token in prompt_ids):
            raise PromptError(f"the prompt holds a token id outside 0 to {model.vocab_size - 1}")

    @contextmanager
    def _run_exclusively(self) -> Iterator[None]:
        """Refuses a second caller instead of waiting, because it may be the same thread."""
        if not self._busy.acquire(blocking=False):
            raise EngineError(
                "this session is generating another reply: finish or close that stream first, "
                "or open a second session"
            )
        self._cancelled.clear()
        try:
            yield
        finally:
            self._busy.release()


def _add_to_seed(options: GenerationOptions, index: int) -> GenerationOptions:
    seed = options.sampling.seed
    if seed is None or index == 0:
        return options
    sampling = replace(options.sampling, seed=(seed + index) % 2**64)
    return replace(options, sampling=sampling)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (left_id, right_id) in enumerate(zip(left, right, strict=False)):
        if left_id != right_id:
            return index
    return min(len(left), len(right))
