"""Training data that follow a rule, so that the best accuracy of heads is known."""

import torch
from support.tiny_models import HIDDEN_SIZE

from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.data.rows import LabelledTokens, Split
from medusa_trt.training.data.shards import DataSpec, Features
from medusa_trt.training.options import HeadsShape, TrainOptions

A, B, V = 5, 3, 32
NOISE = 0.3

DATA_SPEC = DataSpec(
    format_version=1,
    model="tiny",
    hidden_size=64,
    vocab_size=300,
    num_shards=1,
    num_conversations=4,
    batch_size=4,
    num_turns=1,
    max_new_tokens=8,
    temperatures=(0.0, 0.7),
    has_features=True,
    prompts_sha256="",
    dtype="float32",
    seed=0,
)
"""Description of a folder of a few conversations."""


def make_ruled_tokens(length: int, noise: float, generator: torch.Generator) -> list[int]:
    """Makes tokens t' = A t + B mod V, plus 1 with probability `noise`."""
    tokens = [int(torch.randint(V, (1,), generator=generator))]
    while len(tokens) < length:
        extra = int(torch.rand(1, generator=generator) < noise)
        tokens.append((A * tokens[-1] + B + extra) % V)
    return tokens


def make_ruled_split(
    base: BaseModel, noise: float, *, has_features: bool, count: int = 60
) -> Split:
    """Makes replies that follow the rule; the hidden state is an embedding of the last token."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(V, HIDDEN_SIZE, generator=generator)
    conversations = []
    for _ in range(count):
        tokens = torch.tensor(make_ruled_tokens(50, noise, generator), dtype=torch.int32)
        turns = torch.tensor([0] * 4 + [1] * 46, dtype=torch.int32)
        features = Features(
            embedding[tokens[3:-1].long()].half(),
            tokens[4:, None].expand(-1, 8).contiguous(),
            torch.zeros(46, 8).half(),
        )
        conversations.append(LabelledTokens(tokens, turns, features if has_features else None))
    return Split(conversations[:-10], conversations[-10:])


def quick_options(shape: HeadsShape, **changes: object) -> TrainOptions:
    """Options for a short run on the ruled data."""
    values: dict[str, object] = {
        "shape": shape,
        "draft_vocab_size": V,
        "soft_weight": 0.0,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "num_epochs": 10,
        "num_checkpoints": 2,
        "batch_rows": 128,
        "bf16": False,
    }
    return TrainOptions(**(values | changes))  # type: ignore[arg-type]
