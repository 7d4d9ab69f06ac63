"""Decoding: prefill, then draft, verify, accept and commit until the reply ends."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import PromptError
from medusa_trt.runtime.acceptance import accept_greedy
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.candidates import tokens_from_candidates
from medusa_trt.runtime.engine import Engine, VerifyOutputs
from medusa_trt.runtime.ort_engine import OrtEngine
from medusa_trt.runtime.text import Message, TextCodec
from medusa_trt.tree_configs import MedusaTree, chain_tree

FinishReason = Literal["stop", "length", "cache_full"]
Prompt = str | Sequence[int]

_SPARE_ROWS = 64
"""Rows beyond the longest sequence, so that trees up to the published 64 nodes fit at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How one reply is generated.

    Attributes:
        max_new_tokens: limit on the reply, counted in tokens; None means until the model ends
            it or the cache is full.
        ignore_eos: go on after an end-of-sequence token, for benchmarks.
        tree: the draft tree; the bundle's own by default, the empty tree for plain decoding.
    """

    max_new_tokens: int | None = None
    ignore_eos: bool = False
    tree: MedusaTree | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """Counts and times of one reply.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the reply, a final end-of-sequence token included.
        accept_lengths: tokens that each verify step added before the reply was cut at its end.
        prefill_s: seconds until the first token.
        decode_s: seconds for the tokens after the first.
    """

    prompt_tokens: int
    new_tokens: int
    accept_lengths: tuple[int, ...]
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed: tokens after the first over their time; 0 if there are none."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 else 0.0

    @property
    def mean_accept_length(self) -> float:
        """Tokens a verify step added, on average; plain decoding has 1."""
        return float(np.mean(self.accept_lengths)) if self.accept_lengths else 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished reply."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """What one step added. The last event carries the whole reply in `generation`."""

    token_ids: list[int]
    text: str
    generation: Generation | None = None


class MedusaSession:
    """One sequence on one engine.

    A context manager: leaving it frees the engine.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        engine: Engine | None = None,
        max_length: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Opens a bundle and creates its engine.

        Args:
            bundle: an opened bundle, or its folder.
            engine: an engine to use instead of ONNX Runtime's; it is closed with the session.
            max_length: longest sequence, prompt and reply together, in tokens; what the bundle
                allows by default.
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
        self.engine: Engine = engine or OrtEngine(
            self.bundle, capacity=self.max_length + spare, num_threads=num_threads
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine; the session cannot be used afterwards."""
        self.engine.close()

    def generate(self, prompt: Prompt, options: GenerationOptions | None = None) -> Generation:
        """Generates a whole reply; see `stream`."""
        for event in self.stream(prompt, options):
            if event.generation is not None:
                return event.generation
        raise AssertionError("a stream ends with its generation")

    def generate_chat(
        self, messages: Sequence[Message], options: GenerationOptions | None = None
    ) -> Generation:
        """Generates the reply to a conversation, in the model's own chat template."""
        return self.generate(self.text.encode_chat(messages), options)

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None
    ) -> Iterator[StreamEvent]:
        """Generates a reply, an event for each step.

        Args:
            prompt: text, or token ids.
            options: see `GenerationOptions`.

        Raises:
            PromptError: the prompt is empty or does not fit the cache.
            TreeError: the tree asks for more than the heads offer.
            EngineError: the engine failed.
        """
        options = options or GenerationOptions()
        tree = options.tree or self.bundle.tree
        heads = self.bundle.manifest.heads
        tree.check(heads.num_heads, heads.top_k)
        prompt_ids = self.text.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check_prompt(prompt_ids)
        return self._stream(prompt_ids, tree, options)

    def _stream(
        self, prompt_ids: list[int], tree: MedusaTree, options: GenerationOptions
    ) -> Iterator[StreamEvent]:
        stop_ids = () if options.ignore_eos else self.bundle.manifest.model.eos_token_ids
        room = min(self.max_length, self.engine.capacity - tree.num_nodes) - len(prompt_ids)
        limit = min(room, options.max_new_tokens or room)
        text_stream = self.text.stream()
        reply: list[int] = []
        pieces: list[str] = []
        accept_lengths: list[int] = []
        start = first = time.perf_counter()
        for added in self._steps(prompt_ids, tree):
            if reply:
                accept_lengths.append(len(added))
            else:
                first = time.perf_counter()
            kept = _cut_after_stop(added[: limit - len(reply)], stop_ids)
            reply += kept
            pieces.append(text_stream.push(kept))
            if kept[-1] in stop_ids or len(reply) == limit:
                break
            yield StreamEvent(kept, pieces[-1])
        reason: FinishReason = "length" if limit == options.max_new_tokens else "cache_full"
        if kept[-1] in stop_ids:
            reason = "stop"
        stats = GenerationStats(
            prompt_tokens=len(prompt_ids),
            new_tokens=len(reply),
            accept_lengths=tuple(accept_lengths),
            prefill_s=first - start,
            decode_s=time.perf_counter() - first,
        )
        yield StreamEvent(kept, pieces[-1], Generation(reply, "".join(pieces), reason, stats))

    def _steps(self, prompt_ids: list[int], tree: MedusaTree) -> Iterator[list[int]]:
        """The tokens that prefill and then each verify step add, without end."""
        # A tree below the engine's smallest step is followed by rows that nobody reads.
        step_tree = self._padded(tree)
        rows = None if step_tree is tree else range(tree.num_nodes)
        tree_indices = tree.tree_indices(self.bundle.manifest.heads.top_k)
        outputs = self._prefill(prompt_ids)
        past_length = len(prompt_ids)
        root_token, hidden = int(outputs.argmax[0]), outputs.hidden[0]
        yield [root_token]
        while True:
            tokens = self._candidates(root_token, hidden, tree, tree_indices)
            padded = np.resize(tokens, step_tree.num_nodes) if rows is not None else tokens
            outputs = self.engine.verify(padded, step_tree, past_length, rows=rows)
            accepted = accept_greedy(tree, tokens, outputs.argmax)
            self.engine.commit(past_length, accepted.nodes)
            past_length += accepted.accept_length
            root_token, hidden = accepted.bonus_token, outputs.hidden[accepted.nodes[-1]]
            yield [*tokens[accepted.nodes[1:]].tolist(), root_token]

    def _candidates(
        self,
        root_token: int,
        hidden: NDArray[np.float32],
        tree: MedusaTree,
        tree_indices: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        if tree.num_nodes == 1:
            return np.array([root_token], np.int64)
        return tokens_from_candidates(root_token, self.engine.draft(hidden), tree_indices)

    def _prefill(self, prompt_ids: list[int]) -> VerifyOutputs:
        """Fills the cache chunk by chunk; the outputs are those of the prompt's last token."""
        chunk = self.bundle.manifest.target.prefill_chunk
        for start in range(0, len(prompt_ids), chunk):
            ids = np.array(prompt_ids[start : start + chunk], np.int64)
            outputs = self.engine.verify(ids, chain_tree(len(ids) - 1), start, rows=(len(ids) - 1,))
        return outputs

    def _padded(self, tree: MedusaTree) -> MedusaTree:
        min_rows = self.bundle.manifest.target.min_rows
        return tree if tree.num_nodes >= min_rows else chain_tree(min_rows - 1)

    def _check_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise PromptError("the prompt is empty: give at least one token")
        if len(prompt_ids) >= self.max_length:
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens, the cache holds {self.max_length} with "
                "the reply: shorten the prompt or raise --max-length"
            )
        vocab_size = self.bundle.manifest.model.vocab_size
        if not all(0 <= token < vocab_size for token in prompt_ids):
            raise PromptError(f"the prompt holds a token id outside 0 to {vocab_size - 1}")


def _cut_after_stop(token_ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens up to and including the first that ends the reply."""
    for index, token in enumerate(token_ids):
        if token in stop_ids:
            return token_ids[: index + 1]
    return token_ids
