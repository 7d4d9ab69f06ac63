"""Self-distillation data on disk: a folder of shards, and a file that describes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medusa_trt.errors import TrainingError
from medusa_trt.files import replace_file

NUM_TEACHER_TOKENS = 8
"""Most likely tokens of the teacher that are stored for each reply token."""
_SPEC_FILE = "data.json"
_SEQUENCES = ("token_ids", "turns", "lengths")


class DataSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a folder of shards holds and how it was made; equal specs make equal shards.

    Attributes:
        format_version: version of this layout.
        model: the backbone's name.
        hidden_size, vocab_size: sizes of the backbone.
        num_shards: shards of a complete folder, one for each batch of conversations.
        num_conversations: conversations of all shards, at most.
        batch_size: conversations of a shard, at most.
        num_turns: replies of a conversation.
        max_new_tokens: tokens of a reply, at most.
        temperatures: sampling temperatures, used by the shards in turn; 0 is greedy.
        has_features: whether the shards hold `Features`.
        prompts_sha256: hash of all seed prompts.
        dtype: precision of the backbone, or target and precision of the bundle that wrote the
            replies.
        seed: seed of sampling.
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
        hidden: (R, hidden) float16, the unembedding's input when it predicted the token.
        top_ids: (R, 8) int32 ids of the most likely tokens.
        top_logprobs: (R, 8) float16 log-probabilities of these tokens at temperature 1.
    """

    hidden: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    @classmethod
    def from_tokens(
        cls, hidden: Sequence[torch.Tensor], best: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> "Features":
        """Stacks what was computed token by token.

        Args:
            hidden: (hidden,) of each token.
            best: (8,) ids and (8,) log-probabilities of each token.

        Raises:
            TrainingError: a hidden state does not fit into float16.
        """
        states = torch.stack(list(hidden))
        if not bool(states.isfinite().all()):
            raise TrainingError(
                "a hidden state of this model does not fit into float16: "
                "make the data without features (--no-features)"
            )
        ids, logprobs = zip(*best, strict=True)
        return cls(states, torch.stack(ids), torch.stack(logprobs))

    @classmethod
    def concatenate(cls, parts: Sequence["Features"]) -> "Features":
        """Joins the features of several pieces of text, one after the other."""
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.top_ids for part in parts]),
            torch.cat([part.top_logprobs for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """The conversations of one file, one after the other.

    Attributes:
        token_ids: (T,) int32 tokens of all conversations.
        turns: (T,) int32: n in the n-th reply of a conversation, 0 outside of replies.
        lengths: (C,) int32 tokens of each conversation; their sum is T.
        features: one row for each reply token, or None.
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
        """Writes the shard whole or not at all."""
        tensors = {name: getattr(self, name) for name in _SEQUENCES}
        if self.features is not None:
            tensors |= {
                name: getattr(self.features, name).contiguous()
                for name in self.features.__dataclass_fields__
            }
        with replace_file(path, TrainingError) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> "Shard":
        """Reads a shard.

        Raises:
            TrainingError: the file is missing or damaged.
        """
        try:
            tensors = load_file(path)
            features = None
            if "hidden" in tensors:
                features = Features(**{name: tensors.pop(name) for name in Features.__slots__})
            return cls(**tensors, features=features)
        except (OSError, SafetensorError, KeyError, TypeError, AssertionError) as error:
            raise TrainingError(
                f"cannot read {path}: {error or 'its tensors do not fit together'}; "
                "remove it and run the same `train data` command again"
            ) from error


def name_shard(folder: Path, index: int) -> Path:
    """Path of a shard by its number."""
    return folder / f"shard-{index:05d}.safetensors"


def write_spec(folder: Path, spec: DataSpec) -> None:
    """Writes the description of a new folder, or checks that of an existing one.

    Raises:
        TrainingError: the folder holds data that was made in another way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _SPEC_FILE
    if file.exists():
        old, new = (msgspec.structs.asdict(s) for s in (read_spec(folder), spec))
        changes = [
            f"{name} {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name]
        ]
        if changes:
            raise TrainingError(
                f"{folder} holds other data ({', '.join(changes)}): give another --output"
            )
        return
    with replace_file(file, TrainingError) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")


def read_spec(folder: Path) -> DataSpec:
    """Reads the description of a folder.

    Raises:
        TrainingError: the folder holds no training data, or data of another version.
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
    """Reads all shards of a folder.

    Raises:
        TrainingError: a shard is missing or damaged.
    """
    spec = read_spec(folder)
    missing = [i for i in range(spec.num_shards) if not name_shard(folder, i).is_file()]
    if missing:
        raise TrainingError(
            f"{folder} lacks {len(missing)} of {spec.num_shards} shards: "
            "run the same `train data` command again to finish it"
        )
    return [Shard.load(name_shard(folder, index)) for index in range(spec.num_shards)]
