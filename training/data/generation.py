"""Batched generation that keeps what the unembedding read and what the teacher thought likely."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from medusa_trt.errors import TrainingError
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.backbone import observed_unembedding
from medusa_trt.training.data.shards import NUM_TEACHER_TOKENS, Features


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the model wrote after a piece of text.

    Attributes:
        token_ids: with the token that ended it, if one did.
        is_ended: whether it came to an end before the limit.
        features: one row for each token, if they were asked for.
    """

    token_ids: list[int]
    is_ended: bool
    features: Features | None


class Generator(Protocol):
    """Continues texts with what the model would say."""

    def continue_texts(
        self,
        texts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        keep_features: bool = False,
    ) -> list[Continuation]:
        """Continues each text until it ends.

        Args:
            texts: token ids, none empty.
            max_new_tokens: limit for each.
            temperature: 0 is greedy; else all tokens are drawn from, by torch's global generator.
            keep_features: whether to keep hidden states and the teacher's best tokens.
        """
        ...


def draw(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Draws a token for each row of logits (N, vocab) by inverse transform; (N,) int64.

    `torch.multinomial` takes 113 ms for 128 rows of 49,152 tokens on two cores, more than half of
    a step of the model; this takes 13.
    """
    cumulative = (logits.float() / temperature).softmax(-1).cumsum_(-1)
    # Rounding leaves the last sum beside 1; a draw of exactly 0 would take a token of no mass.
    places = (1 - torch.rand(len(logits), 1, device=logits.device)) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, places).clamp_(max=logits.shape[-1] - 1)[:, 0]


class _Draw(LogitsProcessor):
    """Leaves only a drawn token, since `generate` itself would draw slowly."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (N, vocab) → the same with all but the drawn token at minus infinity."""
        drawn = draw(scores, self._temperature)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


class BatchGenerator:
    """Continues a batch of texts through transformers' `generate`."""

    def __init__(self, base: BaseModel) -> None:
        """The generation config of the model is not used: its penalties would change the teacher.

        Raises:
            TrainingError: the model has no token that ends a reply.
        """
        self._model, self._eos_ids = base.model, base.eos_token_ids
        if not self._eos_ids:
            raise TrainingError(f"{base.source.name} has no end token: set eos_token_id")
        pad_id = base.tokenizer.pad_token_id
        self._pad_id = self._eos_ids[0] if pad_id is None else int(pad_id)

    def continue_texts(
        self,
        texts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        keep_features: bool = False,
    ) -> list[Continuation]:
        """See `Generator.continue_texts`."""
        length = max(map(len, texts))
        inputs = torch.full((len(texts), length), self._pad_id, device=self._model.device)
        mask = torch.zeros_like(inputs)
        for row, text in enumerate(texts):
            inputs[row, length - len(text) :] = torch.tensor(text)
            mask[row, length - len(text) :] = 1
        hidden: list[torch.Tensor] = []
        best: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(state: torch.Tensor) -> torch.Tensor:
            if keep_features:
                hidden.append(state[:, -1].to("cpu", torch.float16))
            return state

        def keep_best(_: torch.nn.Module, __: object, output: object) -> None:
            if keep_features:
                best.append(top_logprobs(cast(torch.Tensor, output.logits[:, -1])))  # type: ignore[attr-defined]

        generate = cast(Callable[..., torch.Tensor], self._model.generate)
        with (
            torch.inference_mode(),
            observed_unembedding(self._model, keep),
            self._model.register_forward_hook(keep_best),
        ):
            outputs = generate(
                inputs,
                attention_mask=mask,
                generation_config=self._config(max_new_tokens),
                logits_processor=LogitsProcessorList([_Draw(temperature)] if temperature else []),
            )
        rows = outputs[:, length:].tolist()
        return [self._continuation(row, index, hidden, best) for index, row in enumerate(rows)]

    def _continuation(
        self,
        row: list[int],
        index: int,
        hidden: list[torch.Tensor],
        best: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> Continuation:
        ends = [place for place, token in enumerate(row) if token in self._eos_ids]
        token_ids = row[: ends[0] + 1] if ends else row
        features = None
        if hidden:
            steps = range(len(token_ids))
            features = Features(
                torch.stack([hidden[step][index] for step in steps]),
                torch.stack([best[step][0][index] for step in steps]),
                torch.stack([best[step][1][index] for step in steps]),
            )
            features.check_finite()
        return Continuation(token_ids, bool(ends), features)

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        can_be_static = getattr(self._model, "_can_compile_fullgraph", False)
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # `_Draw` leaves one token to choose
            repetition_penalty=1.0,
            eos_token_id=self._eos_ids,
            pad_token_id=self._pad_id,
            use_cache=True,
            # A cache of fixed size is not copied every step: 731 tokens/s where a growing one
            # gave 596 (SmolLM2-135M, bfloat16, 128 texts, two cores).
            cache_implementation="static" if can_be_static else None,
            disable_compile=True,
        )


def top_logprobs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's best tokens.

    Args:
        logits: (N, vocab).

    Returns:
        ids (N, 8) int32 and log-probabilities (N, 8) float16, best first, on the CPU.
    """
    values, ids = logits.topk(min(NUM_TEACHER_TOKENS, logits.shape[-1]), dim=-1)
    logprobs = values.float() - logits.float().logsumexp(-1, keepdim=True)
    return ids.to("cpu", torch.int32), logprobs.to("cpu", torch.float16)
