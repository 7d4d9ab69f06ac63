"""How heads are trained: light, since the command line reads its defaults here."""

from dataclasses import dataclass, field
from typing import Literal

from medusa_trt.errors import TrainingError

Quantization = Literal["8bit", "4bit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How training data is made.

    Attributes:
        num_conversations: beyond the seed prompts the model writes the first user turn itself
            (Xu et al. 2024, "Magpie"); all seed prompts once if None.
        batch_size: conversations generated together, which make a shard.
        num_turns: replies of a conversation; the model writes the user's further turns, where the
            seed has none.
        max_new_tokens: limit of a reply.
        temperatures: of the shards in turn; 0 is greedy.
        keep_features: keep hidden states and the teacher's best tokens: training then never runs
            the backbone, for 2 * hidden_size + 48 bytes a token.
        seed: of sampling.
    """

    num_conversations: int | None = None
    batch_size: int = 128
    num_turns: int = 1
    max_new_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 0.7)
    keep_features: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_conversations", "batch_size", "num_turns", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}: it must be at least 1")
        if not self.temperatures or not all(0 <= t <= 10 for t in self.temperatures):
            raise TrainingError(
                f"temperatures are {list(self.temperatures)}: give one or more between 0 and 10"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsShape:
    """What heads are made of.

    Attributes:
        num_heads: tokens drafted ahead.
        num_layers: residual blocks of each.
        has_root_map: a linear residual map before the blocks, which reads the root token's
            embedding besides the hidden state.
        has_projection: a linear residual map after the blocks.
        has_own_unembedding: each head trains an unembedding of its own, which begins as the
            backbone's; else all read the backbone's, which stays as it is.
    """

    num_heads: int = 3
    num_layers: int = 1
    has_root_map: bool = True
    has_projection: bool = False
    has_own_unembedding: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_layers"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of Medusa-1 and of the heads' part of Medusa-2.

    Attributes:
        shape: what the heads are made of.
        draft_vocab_size: tokens that the heads choose from, the most frequent in the replies to
            train on; all if None.
        soft_weight: share of the teacher's best tokens in a target, 0 for the token alone.
        decay: λ of λ_k = λ^k (paper, section 2.2.1).
        num_sampled: tokens of a sampled softmax besides a batch's targets; exact if None.
        ridge: penalty of the first guess of the root map or projection, see `ridge_maps`.
        learning_rate: of the heads, the top of a cosine after a warmup.
        weight_decay: of AdamW.
        num_epochs: passes over the data.
        max_steps: end after so many updates; overrides `num_epochs`.
        batch_rows: reply tokens in an update, where the data holds hidden states.
        batch_size: conversations in an update's piece, where the backbone runs.
        accumulation: pieces of an update.
        held_out_fraction: share of the prompts to measure on and never to train on.
        num_nodes: of the tree that is measured, the root included.
        num_checkpoints: evenly over the run; each is also a point of the curves.
        max_length: conversations are cut to so many tokens, where the backbone runs.
        quantization: load the frozen backbone in 8 or 4 bits.
        bf16: train in mixed precision; where the hardware has it if None.
        seed: of the order of the data and of sampling.
    """

    shape: HeadsShape = field(default_factory=HeadsShape)
    draft_vocab_size: int | None = 8192
    soft_weight: float = 0.8
    decay: float = 0.8
    num_sampled: int | None = None
    ridge: float = 1e-3
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    num_epochs: float = 4
    max_steps: int | None = None
    batch_rows: int = 512
    batch_size: int = 8
    accumulation: int = 1
    held_out_fraction: float = 0.05
    num_nodes: int = 8
    num_checkpoints: int = 8
    max_length: int = 2048
    quantization: Quantization | None = None
    bf16: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            *("batch_rows", "batch_size", "accumulation", "num_checkpoints", "max_length"),
            *("draft_vocab_size", "num_sampled", "max_steps"),
        ):
            _check(self, name, 1, None)
        _check(self, "num_nodes", 2, None)
        for name in ("soft_weight", "decay"):
            _check(self, name, 0, 1)
        for name in ("learning_rate", "num_epochs", "ridge", "weight_decay"):
            _check(self, name, 0, None)
        if not 0 < self.held_out_fraction < 1:
            raise TrainingError(
                f"held_out_fraction is {self.held_out_fraction}: it must lie between 0 and 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class JointOptions:
    """What Medusa-2 adds (paper, section 2.2.2).

    Attributes:
        heads: how the heads are trained in both stages; its learning rate is the first stage's.
        learning_rate: of the backbone's adapter.
        heads_factor: the heads' learning rate in the second stage, in multiples of it.
        heads_weight: λ0, weight of the heads' loss, reached along a quarter of a sine.
        lora_rank, lora_alpha: of the adapter on all of the backbone's linear maps.
        num_epochs: of the second stage.
    """

    heads: TrainOptions = field(default_factory=TrainOptions)
    learning_rate: float = 5e-5
    heads_factor: float = 4.0
    heads_weight: float = 0.2
    lora_rank: int = 32
    lora_alpha: int = 16
    num_epochs: float = 1

    def __post_init__(self) -> None:
        for name in ("lora_rank", "lora_alpha"):
            _check(self, name, 1, None)
        if self.heads.quantization is not None:
            raise TrainingError(
                f"joint training changes the backbone's weights, which {self.heads.quantization} "
                "cannot hold: leave out --quantization"
            )
        for name in ("learning_rate", "heads_factor", "heads_weight", "num_epochs"):
            _check(self, name, 0, None)


def _check(options: object, name: str, low: float, high: float | None) -> None:
    value = getattr(options, name)
    if value is None or (low <= value and (high is None or value <= high)):
        return
    bound = f"at least {low}" if high is None else f"between {low} and {high}"
    raise TrainingError(f"{name} is {value}: it must be {bound}")
