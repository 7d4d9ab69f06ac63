"""Self-distillation data on disk: a folder of shards, and a file that says what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medusa_trt.errors import TrainingError

NUM_TEACHER_TOKENS = 8
_SPEC_FILE = "data.json"
_SEQUENCES = ("token_ids", "turns", "lengths")


class DataSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a folder of shards holds and how it was made; equal specs make equal shards.

    Attributes:
        format_version: of this layout.
        model: the backbone's name.
        hidden_size, vocab_size: of the backbone.
        num_shards: shards when complete, one a batch of conversations.
        num_conversations: of all shards, at most.
        batch_size: conversations in a shard, at most.
        num_turns: replies of a conversation.
        max_new_tokens: of a reply.
        temperatures: of the shards in turn; 0 is greedy.
        has_features: whether hidden states and the teacher's best tokens are kept.
        prompts_sha256: of all seed prompts.
        dtype: of the backbone, or what kind of bundle wrote the replies.
        seed: of sampling.
    """

    format_version: int
    model: str
    hidden_size: int
    vocab_size: int
    num_shards: int
    num_conversations: int
    batch_size: int
    num_turns: int
    max_new_tokens: int
    temperatures: tuple[float, ...]
    has_features: bool
    prompts_sha256: str
    dtype: str
    seed: int


@dataclass(frozen=True, slots=True)
class Features:
    """What the backbone computed for each of R reply tokens.

    Attributes:
        hidden: (R, hidden) float16, what the unembedding read when it predicted the token.
        top_ids: (R, 8) int32 ids of the most likely tokens.
        top_logprobs: (R, 8) float16 their log-probabilities at temperature 1.
    """

    hidden: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    @classmethod
    def concatenated(cls, parts: Sequence["Features"]) -> "Features":
        """The features of several pieces of text, one after the other."""
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.top_ids for part in parts]),
            torch.cat([part.top_logprobs for part in parts]),
        )

    def check_finite(self) -> None:
        """Refuses what does not fit into 16 bits.

        Raises:
            TrainingError: a hidden state is infinite or not a number.
        """
        if not bool(self.hidden.isfinite().all()):
            raise TrainingError(
                "a hidden state of this model does not fit into float16: "
                "make the data without features (--no-features)"
            )


@dataclass(frozen=True, slots=True)
class Shard:
    """Conversations, one after the other.

    Attributes:
        token_ids: (T,) int32 tokens of all conversations.
        turns: (T,) int32; 0 outside of replies, n in a conversation's n-th reply.
        lengths: (C,) int32 tokens of each conversation; their sum is T.
        features: one row for each token with a turn, or None.
    """

    token_ids: torch.Tensor
    turns: torch.Tensor
    lengths: torch.Tensor
    features: Features | None

    def __post_init__(self) -> None:
        num_rows = int((self.turns > 0).sum())
        assert len(self.token_ids) == len(self.turns) == int(self.lengths.sum())
        assert self.features is None or len(self.features.hidden) == num_rows

    def save(self, path: Path) -> None:
        """Writes the shard; it appears under its name only when it is whole."""
        tensors = {name: getattr(self, name) for name in _SEQUENCES}
        if self.features is not None:
            tensors |= {
                name: getattr(self.features, name).contiguous()
                for name in self.features.__dataclass_fields__
            }
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Shard":
        """Reads a shard.

        Raises:
            TrainingError: it is missing or damaged.
        """
        try:
            tensors = load_file(path)
            features = (
                Features(**{name: tensors.pop(name) for name in Features.__slots__})
                if ("hidden" in tensors)
                else None
            )
            return cls(**tensors, features=features)
        except (OSError, SafetensorError, KeyError, TypeError, AssertionError) as error:
            raise TrainingError(
                f"cannot read {path}: {error or 'its tensors do not fit together'}; "
                "remove it and run the same `train data` command again"
            ) from error


def shard_path(folder: Path, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{index:05d}.safetensors"


def write_spec(folder: Path, spec: DataSpec) -> None:
    """Begins or continues a folder.

    Raises:
        TrainingError: it holds data made in another way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _SPEC_FILE
    if file.exists():
        found = read_spec(folder)
        names = [name for name in spec.__struct_fields__ if _differs(found, spec, name)]
        if names:
            listed = ", ".join(
                f"{name} {getattr(found, name)!r}, now {getattr(spec, name)!r}" for name in names
            )
            raise TrainingError(f"{folder} holds other data ({listed}): give another --output")
        return
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    temporary.replace(file)


def read_spec(folder: Path) -> DataSpec:
    """Reads what a folder holds.

    Raises:
        TrainingError: it is no data folder, or one of another version.
    """
    try:
        return msgspec.json.decode((folder / _SPEC_FILE).read_bytes(), type=DataSpec)
    except OSError as error:
        raise TrainingError(
            f"{folder} holds no training data: make it by `medusa-trt train data`"
        ) from error
    except msgspec.DecodeError as error:
        raise TrainingError(f"{folder / _SPEC_FILE} cannot be read: {error}") from error


def load_shards(folder: Path) -> list[Shard]:
    """Reads all shards.

    Raises:
        TrainingError: a shard is missing or damaged.
    """
    spec = read_spec(folder)
    missing = [i for i in range(spec.num_shards) if not shard_path(folder, i).is_file()]
    if missing:
        raise TrainingError(
            f"{folder} lacks {len(missing)} of {spec.num_shards} shards: "
            "run the same `train data` command again to finish it"
        )
    return [Shard.load(shard_path(folder, index)) for index in range(spec.num_shards)]


def _differs(found: DataSpec, spec: DataSpec, name: str) -> bool:
    return bool(getattr(found, name) != getattr(spec, name))
