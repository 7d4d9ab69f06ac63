"""Self-distillation data: the model's own replies to seed prompts, shard by shard."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from medusa_trt.calibration.prompts import (
    mt_bench_prompts,
    prompts_from_file,
    self_generated_prompts,
)
from medusa_trt.errors import TrainingError
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.backends import engine_from_backend
from medusa_trt.training.backbone import precision_of
from medusa_trt.training.data.conversation import ChatFrame, Conversation
from medusa_trt.training.data.engine_generation import SPARE_ROWS, EngineGenerator
from medusa_trt.training.data.generation import BatchGenerator, Continuation, Generator
from medusa_trt.training.data.shards import DataSpec, Features, Shard, shard_path, write_spec
from medusa_trt.training.options import DataOptions

FORMAT_VERSION = 1
_USER_TEMPERATURE = 1.0
_MAX_USER_TOKENS = 64
_MAX_FRAME_TOKENS = 64
"""What a chat template puts around a turn, generously."""


def seed_prompts(path: Path | None) -> list[tuple[str, ...]]:
    """User turns to begin with: a file's, or the prompts that ship with the package.

    Raises:
        PromptError: the file cannot be read.
        TrainingError: one of MT-bench's questions is among them.
    """
    if path is None:
        return [(prompt.turns[0],) for prompt in self_generated_prompts()]
    prompts = prompts_from_file(path)
    asked = _mt_bench_turns()
    for prompt in prompts:
        if not asked.isdisjoint(map(_normalized, prompt.turns)):
            raise TrainingError(
                f"prompt {prompt.id} of {path} is a question of MT-bench, on which heads are "
                "measured: remove it"
            )
    return [prompt.turns for prompt in prompts]


def generate_data(
    base: BaseModel,
    prompts: Sequence[tuple[str, ...]],
    folder: Path,
    options: DataOptions,
    bundle: Bundle | None = None,
) -> Iterator[Shard | None]:
    """Makes the shards that a folder lacks.

    A shard depends on the options and its index alone, so that a run that was ended and run again
    leaves the same files as one that was not.

    Args:
        base: the model.
        prompts: user turns to begin with.
        folder: where the shards go.
        options: how many conversations of which kind.
        bundle: one of the same model, whose engine writes the replies instead of `base`.

    Yields:
        each new shard once it is written, None for one that was there.

    Raises:
        TrainingError: the folder holds other data, the model cannot write what is asked, or the
            bundle is of another model.
    """
    frame = ChatFrame.from_tokenizer(base.tokenizer)
    spec = _spec(base, prompts, options, _dtype(base, bundle))
    if not frame.has_template and (options.num_turns > 1 or spec.num_conversations > len(prompts)):
        raise TrainingError(
            f"{base.source.name} has no chat template, so it cannot write user turns: give "
            f"--num-turns 1 and at most {len(prompts)} conversations"
        )
    longest = max(len(frame.opening(base.tokenizer, turns[0])) for turns in prompts)
    generator = _generator(base, options, bundle, longest)
    write_spec(folder, spec)
    writer = _Writer(base, frame, options, generator)
    for index in range(spec.num_shards):
        path = shard_path(folder, index)
        if path.is_file():
            yield None
            continue
        first = index * options.batch_size
        last = min(first + options.batch_size, spec.num_conversations)
        shard = writer.shard(index, prompts[first:last], last - first)
        shard.save(path)
        yield shard


class _Writer:
    """Holds the conversations of one shard at a time."""

    def __init__(
        self, base: BaseModel, frame: ChatFrame, options: DataOptions, generator: Generator
    ) -> None:
        self._tokenizer, self._frame, self._options = base.tokenizer, frame, options
        self._generator = generator
        self._forbidden = _mt_bench_turns()

    def shard(self, index: int, prompts: Sequence[tuple[str, ...]], size: int) -> Shard:
        """Generates a shard of up to `size` conversations, the first ones from `prompts`."""
        options = self._options
        torch.manual_seed(options.seed * 1_000_003 + index)
        temperature = options.temperatures[index % len(options.temperatures)]
        users = [list(turns) for turns in prompts] + self._written_prompts(size - len(prompts))
        if not users:
            raise TrainingError(
                "the model wrote no prompt of its own: give seed prompts for all conversations"
            )
        conversations = [Conversation() for _ in users]
        features: list[list[Features]] = [[] for _ in users]
        for conversation, turns in zip(conversations, users, strict=True):
            conversation.add(self._frame.opening(self._tokenizer, turns[0]))
        active = list(range(len(users)))
        for turn in range(1, options.num_turns + 1):
            replies = self._generator.continue_texts(
                [conversations[i].token_ids for i in active],
                max_new_tokens=options.max_new_tokens,
                temperature=temperature,
                keep_features=options.keep_features,
            )
            for i, reply in zip(active, replies, strict=True):
                conversations[i].add(reply.token_ids, turn)
                if reply.features is not None:
                    features[i].append(reply.features)
            if turn < options.num_turns:
                active = self._say_next(turn, active, replies, users, conversations)
                if not active:
                    break
        flat = [part for parts in features for part in parts]
        return _shard_from(conversations, Features.concatenated(flat) if flat else None)

    def _written_prompts(self, count: int) -> list[list[str]]:
        """Up to `count` first user turns by the model itself; unfinished ones are left out.

        It writes half as many again, because a place that stays empty costs as much as a reply: of
        SmolLM2-135M's prompts 73 % were finished in time.
        """
        if count == 0:
            return []
        prefix = self._frame.user_prefix(self._tokenizer)
        texts = self._user_turns([prefix] * (count + count // 2))
        return [[text] for text in texts if text is not None][:count]

    def _user_turns(self, prefixes: list[list[int]]) -> list[str | None]:
        written = self._generator.continue_texts(
            prefixes, max_new_tokens=_MAX_USER_TOKENS, temperature=_USER_TEMPERATURE
        )
        return [self._user_text(continuation) for continuation in written]

    def _user_text(self, continuation: Continuation) -> str | None:
        if not continuation.is_ended:
            return None
        text = str(self._tokenizer.decode(continuation.token_ids[:-1])).strip()
        return None if not text or _normalized(text) in self._forbidden else text

    def _say_next(
        self,
        turn: int,
        active: list[int],
        replies: list[Continuation],
        users: list[list[str]],
        conversations: list[Conversation],
    ) -> list[int]:
        """Adds the user's next turn; returns the conversations that have one."""
        tokenizer, frame = self._tokenizer, self._frame
        ended = {i: reply.token_ids for i, reply in zip(active, replies, strict=True)}
        unwritten = [i for i in active if len(users[i]) == turn]
        prefixes = [
            conversations[i].token_ids + frame.next_user_prefix(tokenizer, ended[i])
            for i in unwritten
        ]
        for i, text in zip(unwritten, self._user_turns(prefixes) if prefixes else [], strict=True):
            users[i] += [] if text is None else [text]
        going_on = [i for i in active if len(users[i]) > turn]
        for i in going_on:
            conversations[i].add(frame.next_turn(tokenizer, ended[i], users[i][turn]))
        return going_on


def _shard_from(conversations: list[Conversation], features: Features | None) -> Shard:
    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return Shard(
        token_ids=tensor([token for c in conversations for token in c.token_ids]),
        turns=tensor([turn for c in conversations for turn in c.turns]),
        lengths=tensor([len(c.token_ids) for c in conversations]),
        features=features,
    )


def _generator(
    base: BaseModel, options: DataOptions, bundle: Bundle | None, longest: int
) -> Generator:
    """`longest` is the number of tokens of the longest first turn."""
    if bundle is None:
        return BatchGenerator(base)
    spec = bundle.manifest.model
    here = (base.source.name, base.model.config.hidden_size, base.model.config.vocab_size)
    if (spec.name, spec.hidden_size, spec.vocab_size) != here:
        raise TrainingError(
            f"the bundle is of {spec.name} with {spec.hidden_size} hidden values and "
            f"{spec.vocab_size} tokens, not of {here[0]} with {here[1]} and {here[2]}"
        )
    # No more rows than a conversation needs: pages of the cache are touched all over.
    turn = options.max_new_tokens + _MAX_USER_TOKENS + _MAX_FRAME_TOKENS
    needed = max(longest, _MAX_USER_TOKENS + _MAX_FRAME_TOKENS) + options.num_turns * turn
    engine = engine_from_backend(
        None,
        bundle,
        capacity=min(needed, spec.max_length) + SPARE_ROWS,
        batch_size=options.batch_size,
        num_threads=None,
    )
    return EngineGenerator(engine, base.eos_token_ids)


def _dtype(base: BaseModel, bundle: Bundle | None) -> str:
    if bundle is not None:
        return f"bundle {bundle.manifest.target.name} {bundle.manifest.target.precision}"
    return precision_of(base.model)


def _spec(
    base: BaseModel, prompts: Sequence[tuple[str, ...]], options: DataOptions, dtype: str
) -> DataSpec:
    num_conversations = options.num_conversations or len(prompts)
    digest = hashlib.sha256(repr([tuple(turns) for turns in prompts]).encode())
    return DataSpec(
        format_version=FORMAT_VERSION,
        model=base.source.name,
        hidden_size=base.model.config.hidden_size,
        vocab_size=base.model.config.vocab_size,
        num_shards=-(-num_conversations // options.batch_size),
        num_conversations=num_conversations,
        batch_size=options.batch_size,
        num_turns=options.num_turns,
        max_new_tokens=options.max_new_tokens,
        temperatures=options.temperatures,
        has_features=options.keep_features,
        prompts_sha256=digest.hexdigest(),
        dtype=dtype,
        seed=options.seed,
    )


def _mt_bench_turns() -> frozenset[str]:
    turns = (turn for prompt in mt_bench_prompts() for turn in prompt.turns)
    return frozenset(map(_normalized, turns))


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()
