"""Options of training. This module imports nothing heavy, since the command line reads it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from medusa_trt.errors import TrainingError, check_range
from medusa_trt.types_of_options import check_types

Quantization = Literal["8bit", "4bit"]

LAST_SEED = 2**32 - 1
"""The last seed that numpy takes, which transformers gives it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How training data is made: conversations in which the model itself writes the replies.

    Attributes:
        num_conversations: conversations to make; beyond the prompts, the model writes the user's
            first turn itself, as in "Magpie" (Xu et al. 2024) (default: one for each prompt).
        batch_size: conversations that are made together, and are one file of the data.
        num_turns: replies of a conversation; where a prompt has no further turns of the user, the
            model writes these too.
        max_new_tokens: most tokens of a reply.
        temperatures: temperatures of the batches, used in turn; 0 takes the likeliest token.
        keep_features: keep hidden states and the model's likeliest tokens, 2 * hidden_size + 48
            bytes per token. Training on such data does not run the model.
        seed: seed of all that is random.
    """

    num_conversations: int | None = None
    batch_size: int = 128
    num_turns: int = 1
    max_new_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 0.7)
    keep_features: Annotated[bool, "--[no-]features"] = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, TrainingError)
        check_range(self, TrainingError, "num_conversations batch_size num_turns max_new_tokens", 1)
        check_range(self, TrainingError, "seed", 0, LAST_SEED)
        if not self.temperatures or not all(0 <= t <= 10 for t in self.temperatures):
            raise TrainingError(
                f"temperatures are {list(self.temperatures)}: give one or more between 0 and 10"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsShape:
    """What heads are made of.

    Attributes:
        num_heads: number of heads; each drafts one token further ahead.
        num_layers: residual blocks of each head.
        has_root_map: begin each head with a linear residual map that reads the hidden state and the
            embedding of the root token.
        has_projection: end the blocks of each head with a linear residual map.
        has_own_unembedding: give each head an unembedding of its own, which begins as a copy of the
            model's; else all heads use the model's, which is not trained.
    """

    num_heads: int = 3
    num_layers: int = 1
    has_root_map: Annotated[bool, "--[no-]root-map"] = True
    has_projection: Annotated[bool, "--[no-]projection"] = False
    has_own_unembedding: Annotated[bool, "--[no-]own-unembedding"] = False

    def __post_init__(self) -> None:
        check_types(self, TrainingError)
        check_range(self, TrainingError, "num_heads num_layers", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How heads are trained, in Medusa-1 and in the heads' part of Medusa-2.

    Attributes:
        shape: what the heads are made of.
        draft_vocab_size: let the heads draft only this many tokens, the most frequent ones of the
            training data; 0 for all.
        soft_weight: share of the model's likeliest tokens in the target; 0 for the next token
            alone.
        decay: λ of the loss, in which head k counts λ^k (Medusa paper, section 2.2.1).
        num_sampled: compute the softmax over this many sampled tokens and a batch's targets
            (default: over all tokens).
        ridge: penalty of the ridge regression that initializes the root map or the projection.
        learning_rate: highest learning rate of the heads: a warmup leads to it, a cosine from it.
        weight_decay: weight decay of AdamW.
        num_epochs: passes over the data.
        max_steps: end after this many updates (default: after `num_epochs`).
        batch_rows: reply tokens of a batch, where the data has hidden states.
        batch_size: conversations of a batch, where the data has none and the model runs.
        accumulation: batches of an update.
        held_out_fraction: share of the prompts that are not trained on, but measured on.
        num_nodes: nodes of the tree that is measured, the root included.
        num_checkpoints: checkpoints of a run, at equal distances; each is measured.
        max_length: cut conversations to this many tokens, where the model runs.
        quantization: load the model, which is not trained, in 8 or 4 bits by bitsandbytes (default:
            as it is).
        bf16: train in mixed precision (default: where the hardware has bfloat16).
        seed: seed of the data's order and of all that is random.
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
    bf16: Annotated[bool | None, "--[no-]bf16"] = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, TrainingError)
        counts = "batch_rows batch_size accumulation num_checkpoints max_length"
        check_range(self, TrainingError, f"{counts} num_sampled max_steps", 1)
        check_range(self, TrainingError, "num_nodes", 2)
        check_range(self, TrainingError, "soft_weight decay", 0, 1)
        check_range(self, TrainingError, "seed", 0, LAST_SEED)
        names = "draft_vocab_size learning_rate num_epochs ridge weight_decay"
        check_range(self, TrainingError, names, 0)
        if not 0 < self.held_out_fraction < 1:
            raise TrainingError(
                f"held_out_fraction is {self.held_out_fraction}: it must be above 0 and below 1"
            )
        object.__setattr__(self, "draft_vocab_size", self.draft_vocab_size or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointOptions:
    """How a model and its heads are trained together: Medusa-2 (Medusa paper, section 2.2.2).

    Attributes:
        heads: how the heads are trained in both stages; its learning rate is the first stage's.
        learning_rate: highest learning rate of the model's adapter.
        heads_factor: learning rate of the heads in the second stage, in multiples of the adapter's.
        heads_weight: λ0, the weight of the heads' loss, to which a quarter of a sine leads from 0.
        lora_rank: rank of the LoRA adapter on all linear maps of the model.
        lora_alpha: the adapter's output is multiplied by this / `lora_rank`.
        num_epochs: passes over the data in the second stage.
    """

    heads: TrainOptions = field(default_factory=TrainOptions)
    learning_rate: Annotated[float, "--joint-learning-rate"] = 5e-5
    heads_factor: float = 4.0
    heads_weight: float = 0.2
    lora_rank: int = 32
    lora_alpha: int = 16
    num_epochs: Annotated[float, "--joint-epochs"] = 1

    def __post_init__(self) -> None:
        check_types(self, TrainingError)
        check_range(self, TrainingError, "lora_rank lora_alpha", 1)
        check_range(self, TrainingError, "learning_rate heads_factor heads_weight num_epochs", 0)
        if self.heads.quantization is not None:
            raise TrainingError(
                f"joint training changes the backbone's weights, which {self.heads.quantization} "
                "cannot hold: leave out --quantization"
            )
