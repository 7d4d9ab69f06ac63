"""Training objectives: modules whose forward takes a batch and returns the loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.training.backbone import observe_unembedding
from medusa_trt.training.data.generation import select_top_logprobs
from medusa_trt.training.data.rows import ReplyRows
from medusa_trt.training.data.shards import Features
from medusa_trt.training.data.targets import TargetRule, Targets
from medusa_trt.training.loss import compute_medusa_loss
from medusa_trt.training.options import TrainOptions
from medusa_trt.training.trainable_heads import TrainableHeads


class HeadsOnFeatures(nn.Module):
    """Medusa-1 on stored hidden states, without the backbone."""

    def __init__(self, heads: TrainableHeads, options: TrainOptions) -> None:
        super().__init__()
        self.heads, self._options = heads, options

    def forward(
        self,
        hidden: torch.Tensor,
        root_ids: torch.Tensor,
        columns: torch.Tensor,
        weights: torch.Tensor,
        exists: torch.Tensor,
        progress: float = 0.0,
    ) -> torch.Tensor:
        """Computes the loss.

        Args:
            hidden: (N, hidden).
            root_ids: (N,) the token that each hidden state predicted.
            columns, weights, exists: the tensors of `Targets`.
            progress: not used.
        """
        targets = Targets(columns, weights, exists)
        return _compute_loss(self.heads, hidden.float(), root_ids, targets, self._options)


class HeadsOnBackbone(nn.Module):
    """Heads on a running backbone: frozen (Medusa-1), or with an adapter (Medusa-2).

    With an adapter, the loss follows section 2.2.2 of the paper with its self-distillation:
    KL(teacher ‖ model) + λ0 · the heads' loss. The teacher is the model without its adapter.
    """

    # The Trainer checks this attribute when a checkpoint lacks weights, as ours lack the backbone.
    _keys_to_ignore_on_save = None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        heads: TrainableHeads,
        options: TrainOptions,
        *,
        teacher: Callable[[], AbstractContextManager[Any]] | None = None,
        heads_weight: Callable[[float], float] = lambda _: 1.0,
    ) -> None:
        """Joins backbone and heads.

        Args:
            model: the backbone; only the parameters of an adapter are trained and saved.
            heads: the heads to train.
            options: those of the heads' loss.
            teacher: a context in which the adapter is off; None for a frozen backbone.
            heads_weight: λ0 as a function of the progress from 0 to 1.
        """
        super().__init__()
        self.model, self.heads, self._options = model, heads, options
        self._teacher, self._heads_weight = teacher, heads_weight
        self._rule = TargetRule(
            num_heads=heads.shape.num_heads,
            columns=heads.vocabulary.make_columns().to(model.device),
            soft_weight=options.soft_weight,
        )

    def forward(
        self,
        token_ids: torch.Tensor,
        turns: torch.Tensor,
        attention_mask: torch.Tensor,
        progress: float = 0.0,
    ) -> torch.Tensor:
        """Computes the loss of (B, T) tokens, which are padded on the right with turn 0."""
        with torch.no_grad(), (self._teacher or nullcontext)():
            hidden, teacher_logits = self.compute_hidden_and_logits(
                token_ids, turns, attention_mask
            )
        loss = hidden.new_zeros((), dtype=torch.float32)
        if self._teacher is not None:
            hidden, logits = self.compute_hidden_and_logits(token_ids, turns, attention_mask)
            loss = kl_divergence(teacher_logits, logits)
        rows = _rows_from_batch(token_ids, turns, teacher_logits)
        targets = self._rule.make_targets(rows, torch.arange(len(rows), device=hidden.device))
        state, ids = hidden.float(), rows.token_ids
        heads_loss = _compute_loss(self.heads, state, ids, targets, self._options)
        return loss + self._heads_weight(progress) * heads_loss

    def compute_hidden_and_logits(
        self, token_ids: torch.Tensor, turns: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes what predicts each of R reply tokens: (R, hidden) and (R, vocab)."""
        predicts_reply = turns.roll(-1, dims=1) > 0
        predicts_reply[:, -1] = False
        hidden: list[torch.Tensor] = []

        def select(state: torch.Tensor) -> torch.Tensor:
            hidden.append(state[predicts_reply])
            return hidden[0][None]

        with observe_unembedding(self.model, select):
            logits = self.model(
                input_ids=token_ids, attention_mask=attention_mask, use_cache=False
            ).logits
        return hidden[0], logits[0]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns only what is trained, so that a checkpoint does not hold the backbone."""
        state = super().state_dict(*args, **kwargs)
        adapter = {
            f"model.{name}"
            for name, value in self.model.named_parameters()
            if self._teacher is not None and value.requires_grad
        }
        saved_names = {name for name in state if name.startswith("heads.")} | adapter
        return {name: value for name, value in state.items() if name in saved_names}

    def train(self, mode: bool = True) -> "HeadsOnBackbone":
        """Keeps the backbone in evaluation mode: dropout would change the teacher."""
        super().train(mode)
        self.model.eval()
        return self


def kl_divergence(teacher_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean KL(teacher ‖ model) over rows of (R, vocab) logits."""
    teacher = teacher_logits.float().log_softmax(-1)
    model = logits.float().log_softmax(-1)
    return nn.functional.kl_div(model, teacher, reduction="batchmean", log_target=True)


def _compute_loss(
    heads: TrainableHeads,
    hidden: torch.Tensor,
    root_ids: torch.Tensor,
    targets: Targets,
    options: TrainOptions,
) -> torch.Tensor:
    return compute_medusa_loss(
        heads(hidden, root_ids),
        heads.get_unembeddings(),
        targets,
        decay=options.decay,
        num_sampled=options.num_sampled,
    )


def _rows_from_batch(
    token_ids: torch.Tensor, turns: torch.Tensor, logits: torch.Tensor
) -> ReplyRows:
    """Reply rows of padded conversations, with the teacher's most likely tokens."""
    ids, logprobs = select_top_logprobs(logits)
    device = token_ids.device
    features = Features(logits.new_empty(0), ids.to(device), logprobs.to(device))
    return ReplyRows.from_padded(token_ids, turns, features)
