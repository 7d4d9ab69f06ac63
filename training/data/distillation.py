"""Generates self-distillation data: the model's own replies to seed prompts, shard by shard."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from medusa_trt.calibration.prompts import (
    load_mt_bench_prompts,
    load_self_generated_prompts,
    prompts_from_file,
)
from medusa_trt.errors import TrainingError
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.training.backbone import describe_precision
from medusa_trt.training.data.conversation import ChatFrame, Conversation
from medusa_trt.training.data.engine_generation import SessionGenerator
from medusa_trt.training.data.generation import BatchGenerator, Continuation
from medusa_trt.training.data.shards import DataSpec, Features, Shard, name_shard, write_spec
from medusa_trt.training.options import DataOptions

FORMAT_VERSION = 1
_USER_TEMPERATURE = 1.0
_MAX_USER_TOKENS = 64
_MAX_FRAME_TOKENS = 64
"""More tokens than a chat template puts around a turn."""

Generator = BatchGenerator | SessionGenerator
"""What writes the replies: transformers, or the engine of a bundle."""


def load_seed_prompts(path: Path | None) -> list[tuple[str, ...]]:
    """Reads the user turns of each prompt of a file, or of the packaged prompts if None.

    Raises:
        PromptError: the file cannot be read.
        TrainingError: a prompt is a question of MT-bench.
    """
    if path is None:
        return [(prompt.turns[0],) for prompt in load_self_generated_prompts()]
    prompts = prompts_from_file(path)
    questions = _list_mt_bench_turns()
    for prompt in prompts:
        if not questions.isdisjoint(map(_normalize, prompt.turns)):
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
    on_step: Callable[[], object] = lambda: None,
) -> Iterator[Shard | None]:
    """Generates the shards that a folder lacks.

    A shard depends only on the options and its number. So a run that was interrupted and repeated
    leaves the same files as an uninterrupted one.

    Args:
        base: the model.
        prompts: the user turns of each seed prompt.
        folder: the folder of the shards.
        options: number and kind of the conversations.
        bundle: a bundle of the same model, whose engine then writes the replies.
        on_step: called when each text of a batch has got one more token.

    Yields:
        Each new shard once it is written, None for a shard that the folder held already.

    Raises:
        TrainingError: the folder holds other data, the model cannot write such conversations, or
            the bundle is of another model.
    """
    frame = ChatFrame.from_tokenizer(base.tokenizer)
    spec = _make_spec(base, prompts, options, bundle)
    if not frame.has_template and (options.num_turns > 1 or spec.num_conversations > len(prompts)):
        raise TrainingError(
            f"{base.source.name} has no chat template, so it cannot write user turns: give "
            f"--num-turns 1 and at most {len(prompts)} conversations"
        )
    longest = max(len(frame.encode_opening(base.tokenizer, turns[0])) for turns in prompts)
    generator = _make_generator(base, options, bundle, longest, on_step)
    write_spec(folder, spec)
    writer = _ShardWriter(base, frame, options, generator)
    for index in range(spec.num_shards):
        path = name_shard(folder, index)
        if path.is_file():
            yield None
            continue
        first = index * options.batch_size
        last = min(first + options.batch_size, spec.num_conversations)
        shard = writer.generate(index, prompts[first:last], last - first)
        shard.save(path)
        yield shard


class _ShardWriter:
    """Generates the conversations of one shard at a time."""

    def __init__(
        self, base: BaseModel, frame: ChatFrame, options: DataOptions, generator: Generator
    ) -> None:
        self._tokenizer, self._frame, self._options = base.tokenizer, frame, options
        self._generator = generator
        self._forbidden = _list_mt_bench_turns()

    def generate(self, index: int, prompts: Sequence[tuple[str, ...]], size: int) -> Shard:
        """Generates up to `size` conversations; the model writes the prompts that are missing."""
        options = self._options
        torch.manual_seed(options.seed * 1_000_003 + index)
        temperature = options.temperatures[index % len(options.temperatures)]
        users = [list(turns) for turns in prompts] + self._write_prompts(size - len(prompts))
        if not users:
            raise TrainingError(
                "the model wrote no prompt of its own: give seed prompts for all conversations"
            )
        conversations = [Conversation() for _ in users]
        features: list[list[Features]] = [[] for _ in users]
        for conversation, turns in zip(conversations, users, strict=True):
            conversation.add(self._frame.encode_opening(self._tokenizer, turns[0]))
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
                active = self._add_user_turns(turn, active, replies, users, conversations)
                if not active:
                    break
        parts = [part for turns in features for part in turns]
        features_of_all = Features.concatenate(parts) if parts else None
        return _shard_from_conversations(conversations, features_of_all)

    def _write_prompts(self, count: int) -> list[list[str]]:
        """Lets the model write up to `count` first user turns; unfinished ones are dropped.

        The model writes one and a half times as many, because an empty place in the batch costs as
        much as a reply. SmolLM2-135M finishes 73 % of its prompts within the limit.
        """
        if count == 0:
            return []
        prefix = self._frame.encode_user_prefix(self._tokenizer)
        texts = self._write_user_turns([prefix] * (count + count // 2))
        return [[text] for text in texts if text is not None][:count]

    def _write_user_turns(self, prefixes: list[list[int]]) -> list[str | None]:
        continuations = self._generator.continue_texts(
            prefixes, max_new_tokens=_MAX_USER_TOKENS, temperature=_USER_TEMPERATURE
        )
        return [self._decode_user_turn(continuation) for continuation in continuations]

    def _decode_user_turn(self, continuation: Continuation) -> str | None:
        """Returns None for a text that is unfinished, empty, or a question of MT-bench."""
        if not continuation.is_ended:
            return None
        text = str(self._tokenizer.decode(continuation.token_ids[:-1])).strip()
        return None if not text or _normalize(text) in self._forbidden else text

    def _add_user_turns(
        self,
        turn: int,
        active: list[int],
        replies: list[Continuation],
        users: list[list[str]],
        conversations: list[Conversation],
    ) -> list[int]:
        """Adds the next user turns; returns the indices of the conversations that have one."""
        tokenizer, frame = self._tokenizer, self._frame
        reply_ids = {i: reply.token_ids for i, reply in zip(active, replies, strict=True)}
        unwritten = [i for i in active if len(users[i]) == turn]
        prefixes = [
            conversations[i].token_ids + frame.encode_next_user_prefix(tokenizer, reply_ids[i])
            for i in unwritten
        ]
        texts = self._write_user_turns(prefixes) if prefixes else []
        for i, text in zip(unwritten, texts, strict=True):
            users[i] += [] if text is None else [text]
        continued = [i for i in active if len(users[i]) > turn]
        for i in continued:
            token_ids = frame.encode_next_turn(tokenizer, reply_ids[i], users[i][turn])
            conversations[i].add(token_ids)
        return continued


def _shard_from_conversations(
    conversations: list[Conversation], features: Features | None
) -> Shard:
    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return Shard(
        token_ids=tensor([token for c in conversations for token in c.token_ids]),
        turns=tensor([turn for c in conversations for turn in c.turns]),
        lengths=tensor([len(c.token_ids) for c in conversations]),
        features=features,
    )


def _make_generator(
    base: BaseModel,
    options: DataOptions,
    bundle: Bundle | None,
    longest: int,
    on_step: Callable[[], object],
) -> Generator:
    """Chooses what writes the replies; `longest` is the token count of the longest first turn."""
    if bundle is None:
        return BatchGenerator(base, on_step)
    spec = bundle.manifest.model
    expected = (base.source.name, base.model.config.hidden_size, base.model.config.vocab_size)
    if (spec.name, spec.hidden_size, spec.vocab_size) != expected:
        raise TrainingError(
            f"the bundle is of {spec.name} (hidden size {spec.hidden_size}, "
            f"{spec.vocab_size} tokens), not of {expected[0]} ({expected[1]}, {expected[2]}): "
            "export one of the same model"
        )
    # The cache has only the rows that a conversation needs, because the engine uses all of them.
    turn = options.max_new_tokens + _MAX_USER_TOKENS + _MAX_FRAME_TOKENS
    max_length = max(longest, _MAX_USER_TOKENS + _MAX_FRAME_TOKENS) + options.num_turns * turn
    session = MedusaSession(
        bundle, max_length=min(max_length, spec.max_length), batch_size=options.batch_size
    )
    return SessionGenerator(session, base.eos_token_ids, on_step)


def _make_spec(
    base: BaseModel,
    prompts: Sequence[tuple[str, ...]],
    options: DataOptions,
    bundle: Bundle | None,
) -> DataSpec:
    if bundle is None:
        precision = describe_precision(base.model)
    else:
        target = bundle.manifest.target
        precision = f"bundle {target.name} {target.precision}"
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
        dtype=precision,
        seed=options.seed,
    )


def _list_mt_bench_turns() -> frozenset[str]:
    turns = (turn for prompt in load_mt_bench_prompts() for turn in prompt.turns)
    return frozenset(map(_normalize, turns))


def _normalize(text: str) -> str:
    return " ".join(text.split()).casefold()
