"""Sessions: prompts in, replies out, one at a time or as a batch."""

import threading
from collections.abc import Generator, Sequence
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

_SPARE_ROWS = 64
"""Rows beyond the longest sequence, so that trees up to the published 64 nodes fit at its end."""


@dataclass(slots=True)
class _Running:
    """A reply in progress: `index` is its place among the prompts of a batch."""

    index: int
    prompt_ids: list[int]
    reply: Reply
    state: SequenceState | None = None


class MedusaSession:
    """An engine and its conversations.

    What a reply leaves in the cache is kept, so a prompt that begins as the last one did is only
    prefilled from where it differs. One reply (or batch) runs at a time: a second one from another
    thread is refused, and several sessions do not affect each other. A context manager: leaving it
    frees the engine.
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
            backend: what runs the graphs, a name in `runtime/engines/backends.py`; the one of the
                bundle's target by default.
            max_length: longest sequence, prompt and reply together, in tokens; what the bundle
                allows by default.
            batch_size: sequences that `generate_batch` steps together.
            num_threads: threads for one step; the engine's choice by default.

        Raises:
            BundleError: the bundle is missing, truncated or tampered with.
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
        spare = max(_SPARE_ROWS, self.bundle.tree.num_nodes)
        self.engine: Engine = engine or engine_from_backend(
            backend,
            self.bundle,
            capacity=self.max_length + spare,
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
        """Ends the running reply after its current step; for another thread or a callback."""
        self._cancelled.set()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; messages go through the model's own chat template.

        Raises:
            PromptError: messages, where the model has no chat template or refuses them.
        """
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        ids = [item for item in prompt if isinstance(item, int)]
        if len(ids) == len(prompt):
            return ids
        return self.text.encode_chat([item for item in prompt if not isinstance(item, int)])

    def generate(self, prompt: Prompt, options: GenerationOptions | None = None) -> Generation:
        """Generates a whole reply; see `stream`."""
        options = options or GenerationOptions()
        prompt_ids = self.encode(prompt)
        self._check(prompt_ids, options)
        for event in self._stream(prompt_ids, options, streamed=False):
            if event.generation is not None:
                return event.generation
        raise AssertionError("a stream ends with its generation")

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None
    ) -> Generator[StreamEvent, None, None]:
        """Generates a reply, an event for each step.

        Closing the iterator, `cancel` and Ctrl-C end the reply; the session stays usable. After
        the last two the last event still carries what was generated.

        Args:
            prompt: text, token ids, or messages.
            options: see `GenerationOptions`.

        Raises:
            PromptError: the prompt is empty or does not fit the cache.
            TreeError: the tree asks for more than the heads offer.
            EngineError: the engine failed before the first token, is closed or is busy.
            GenerationError: the engine failed later; it carries what was generated.
        """
        options = options or GenerationOptions()
        prompt_ids = self.encode(prompt)
        self._check(prompt_ids, options)
        return self._stream(prompt_ids, options)

    def generate_batch(
        self, prompts: Sequence[Prompt], options: GenerationOptions | None = None
    ) -> list[Generation]:
        """Generates the replies to several prompts, `batch_size` at a time.

        A finished reply's slot goes to the next prompt, and an empty slot costs nothing. Prompt i
        is sampled with seed + i. Each reply equals the one its prompt gets alone.

        Args:
            prompts: in any number, of any lengths.
            options: for all of them.

        Raises:
            PromptError: a prompt is empty or does not fit the cache.
            EngineError: the engine failed, is closed or is busy.
        """
        options = options or GenerationOptions()
        all_ids = [self.encode(prompt) for prompt in prompts]
        for prompt_ids in all_ids:
            self._check(prompt_ids, options)
        with self._exclusively():
            return self._batch(all_ids, options)

    def generate_n(
        self, prompt: Prompt, n: int, options: GenerationOptions | None = None
    ) -> list[Generation]:
        """Generates n replies to one prompt, reply i with seed + i; see `generate_batch`.

        With one slot they run one after the other, and the prompt is prefilled once.

        Raises:
            PromptError: n is below 1, and as `generate_batch`.
        """
        if n < 1:
            raise PromptError(f"n is {n}: it must be at least 1")
        options = options or GenerationOptions()
        if self.engine.batch_size > 1:
            return self.generate_batch([prompt] * n, options)
        return [self.generate(prompt, self._seeded(options, index)) for index in range(n)]

    def _stream(
        self, prompt_ids: list[int], options: GenerationOptions, streamed: bool = True
    ) -> Generator[StreamEvent, None, None]:
        with self._exclusively():
            num_cached = _common_length(self._cached_ids, prompt_ids[:-1])
            del self._cached_ids[num_cached:]
            running = self._begin(0, prompt_ids, num_cached, options, streamed)
            decoder = self._decoder(options)
            reply, event = running.reply, None
            try:
                while True:
                    added = self._advance(decoder, running, num_cached, options)
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
            last = event or StreamEvent([], reply.rest(), 0)
            yield last._replace(generation=reply.finish(decoder.engine_s))

    def _advance(
        self, decoder: Decoder, running: _Running, num_cached: int, options: GenerationOptions
    ) -> Added:
        """Prefill or one step, keeping account of what the cache holds."""
        if running.state is None:
            chooser = self._chooser(running, options)
            running.state, added = decoder.start(0, running.prompt_ids, num_cached, chooser)
            self._cached_ids[:] = running.prompt_ids
            return added
        root_token = running.state.root_token
        added = decoder.step([running.state])[0]
        self._cached_ids += [root_token, *added[0][:-1]]
        return added

    def _batch(self, all_ids: list[list[int]], options: GenerationOptions) -> list[Generation]:
        self._cached_ids.clear()
        decoder = self._decoder(options)
        waiting = [(index, ids, self._seeded(options, index)) for index, ids in enumerate(all_ids)][
            ::-1
        ]
        active: list[_Running] = []
        done: dict[int, Generation] = {}
        while waiting or active:
            while waiting and len(active) < self.engine.batch_size:
                index, ids, own = waiting.pop()
                running = self._begin(index, ids, 0, own)
                chooser = self._chooser(running, own)
                for other in active:
                    # The engine's last outputs end with its next step.
                    assert other.state is not None
                    other.state.hidden = other.state.hidden.copy()
                try:
                    running.state, added = decoder.start(len(active), ids, 0, chooser)
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
        self, active: list[_Running], done: dict[int, Generation], decoder: Decoder
    ) -> None:
        """Takes finished replies out; the last slot's sequence moves into the freed slot."""
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
    ) -> _Running:
        room = self._room(options) - len(prompt_ids)
        limit = min(room, options.max_new_tokens or room)
        reason: FinishReason = "length" if limit == options.max_new_tokens else "cache_full"
        eos_token_ids = self.bundle.manifest.model.eos_token_ids
        reply = Reply(
            num_prompt=len(prompt_ids),
            num_cached=num_cached,
            limit=limit,
            limit_reason=reason,
            stop_ids=() if options.ignore_eos else eos_token_ids,
            stop=options.stop,
            text_stream=self.text.stream(),
            text=self.text.decode(prompt_ids) if options.echo else "",
            streamed=streamed,
        )
        return _Running(index, prompt_ids, reply)

    def _chooser(self, running: _Running, options: GenerationOptions) -> Chooser:
        return Chooser(options, running.prompt_ids, self.engine.capacity + 1)

    def _decoder(self, options: GenerationOptions) -> Decoder:
        target = self.bundle.manifest.target
        return Decoder(
            self.engine,
            self._tree(options),
            options.sampling,
            top_k=self.bundle.manifest.heads.top_k,
            min_rows=target.min_rows,
            prefill_chunk=self.engine.prefill_chunk,
            lookup_ngram=options.lookup_ngram,
            is_cancelled=self._cancelled.is_set,
        )

    def _tree(self, options: GenerationOptions) -> MedusaTree:
        return options.tree or self.bundle.tree

    def _room(self, options: GenerationOptions) -> int:
        """Longest sequence that leaves room for a step's nodes."""
        return min(self.max_length, self.engine.capacity - self._tree(options).num_nodes)

    @staticmethod
    def _seeded(options: GenerationOptions, index: int) -> GenerationOptions:
        seed = options.sampling.seed
        if seed is None or index == 0:
            return options
        sampling = replace(options.sampling, seed=(seed + index) % 2**64)
        return replace(options, sampling=sampling)

    def _check(self, prompt_ids: Sequence[int], options: GenerationOptions) -> None:
        heads, model = self.bundle.manifest.heads, self.bundle.manifest.model
        self._tree(options).check(heads.num_heads, heads.top_k)
        if not prompt_ids:
            raise PromptError("the prompt is empty: give at least one token")
        if len(prompt_ids) >= self._room(options):
            is_shorter = self.max_length < model.max_length
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens, the cache holds {self._room(options)} "
                f"with the reply: shorten the prompt{' or raise --max-length' * is_shorter}"
            )
        if not all(0 <= token < model.vocab_size for token in prompt_ids):
            raise PromptError(f"the prompt holds a token id outside 0 to {model.vocab_size - 1}")

    def _exclusively(self) -> "_Exclusive":
        return _Exclusive(self._busy, self._cancelled)


class _Exclusive:
    """Refuses a second user instead of waiting, since it may be the same thread."""

    def __init__(self, lock: threading.Lock, cancelled: threading.Event) -> None:
        self._lock, self._cancelled = lock, cancelled

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise EngineError(
                "this session is generating another reply: finish or close that stream first, "
                "or open a second session"
            )
        self._cancelled.clear()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
