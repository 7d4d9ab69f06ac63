"""Measures the effect of rounded matrices on a model's next tokens, on given texts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from medusa_trt.export.quantization.grid import RoundedMatrix
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.weight_formats import Format, WeightFormat, is_rounded

Formats = Mapping[str, Format]
"""A format for each site, by its name. Sites that are left out stay unrounded."""

Matrices = Mapping[str, RoundedMatrix]
"""Matrices that are rounded already, by parameter name."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its reply.

    Attributes:
        prompt_ids: token ids of the prompt.
        token_ids: the reply's n tokens, each of which is to be predicted.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


def count_tokens(text: Text) -> int:
    """Counts the tokens of a prompt and its reply."""
    return len(text.prompt_ids) + len(text.token_ids)


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of rounding on a model.

    Attributes:
        kl: mean of KL(model, rounded) over the positions, in nats.
        agreement: share of positions with the same argmax.
        hidden: hidden states that unembedding and heads read, (n, hidden_size) float32 for each
            text.
    """

    kl: float
    agreement: float
    hidden: list[NDArray[np.float32]]


class RoundedModel:
    """A model some of whose matrices are rounded, with their inputs. The rounding can be undone."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], rounding: Rounding) -> None:
        """Takes the unrounded model. Its matrices stay in memory beside the rounded ones."""
        self.model = model
        self._rounding = rounding
        self._sites = {site.name: site for site in sites}
        self._formats: dict[str, Format] = {}
        self._matrices: Matrices | None = None
        self._replacements: dict[str, list[_Replacement]] = {}

    def set(self, formats: Formats, matrices: Matrices | None = None) -> None:
        """Rounds these sites and no others. A site that keeps its format is not rounded again.

        Matrices that are given are used as they are, the others are rounded to nearest.
        """
        rounded = {name: format_ for name, format_ in formats.items() if is_rounded(format_)}
        is_same = matrices is self._matrices
        self._matrices = matrices
        changed = [
            name
            for name, present in self._formats.items()
            if not is_same or rounded.get(name) != present
        ]
        for name in changed:
            del self._formats[name]
            for replacement in self._replacements.pop(name):
                replacement.undo()
        for name, format_ in rounded.items():
            if name not in self._formats:
                paths = self._sites[name].modules
                self._replacements[name] = [self._replace(path, format_) for path in paths]
                self._formats[name] = format_

    def _replace(self, path: str, format_: WeightFormat) -> "_Replacement":
        module = self.model.get_submodule(path)
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        given = None if self._matrices is None else self._matrices.get(f"{path}.weight")
        if given is None:
            matrix = self._rounding.round_weight(weight.detach().numpy().T, format_)
        else:
            matrix = given.compute_values().T
        # A new parameter is set instead of new data, since an embedding may share the parameter.
        module._parameters["weight"] = nn.Parameter(torch.from_numpy(matrix).T, False)

        def round_inputs(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            return self._rounding.round_inputs(inputs[0], format_)

        return _Replacement(module, weight, module.register_forward_pre_hook(round_inputs))


@dataclass(frozen=True, slots=True)
class _Replacement:
    module: nn.Module
    unrounded: nn.Parameter
    handle: RemovableHandle

    def undo(self) -> None:
        self.handle.remove()
        self.module._parameters["weight"] = self.unrounded


class QuantizationMeter:
    """Compares a model whose matrices are rounded with the unrounded model.

    It keeps the unrounded model's log-probabilities, (n, vocab_size) float32 for each text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        rounding: Rounding,
        texts: Sequence[Text],
    ) -> None:
        """Runs the unrounded model on the texts."""
        self._rounded = RoundedModel(model, sites, rounding)
        self._texts = texts
        with torch.inference_mode():
            self._logprobs = [compute_logits(model, text).log_softmax(-1) for text in texts]

    def restore(self) -> None:
        """Gives the model its unrounded matrices back."""
        self._rounded.set({})

    def measure(self, formats: Formats, matrices: Matrices | None = None) -> Change:
        """Rounds these sites and no others, and compares; see `RoundedModel.set`."""
        self._rounded.set(formats, matrices)
        total, num_agreeing, hidden = 0.0, 0, []
        for text, logprobs in zip(self._texts, self._logprobs, strict=True):
            with torch.inference_mode(), _observe_hidden(self._rounded.model) as observed:
                rounded = compute_logits(self._rounded.model, text).log_softmax(-1)
                divergence = nn.functional.kl_div(
                    rounded, logprobs, reduction="none", log_target=True
                )
                total += float(divergence.sum(dtype=torch.float64))
                num_agreeing += int((rounded.argmax(-1) == logprobs.argmax(-1)).sum())
            hidden.append(observed[0])
        num_positions = sum(len(text.token_ids) for text in self._texts)
        return Change(total / num_positions, num_agreeing / num_positions, hidden)


def compute_logits(model: PreTrainedModel, text: Text) -> torch.Tensor:
    """Logits (n, vocab_size) that predict the reply's tokens."""
    ids = [*text.prompt_ids, *text.token_ids[:-1]]

    def select(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0][:, len(text.prompt_ids) - 1 :]

    # This hook runs first, so that the other hooks see only the rows that predict the reply.
    handle = model.get_output_embeddings().register_forward_pre_hook(select, prepend=True)
    try:
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits


@contextmanager
def _observe_hidden(model: PreTrainedModel) -> Iterator[list[NDArray[np.float32]]]:
    """Collects the final norm's outputs at the selected rows, which unembedding and heads read."""
    observed: list[NDArray[np.float32]] = []

    def observe(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        observed.append(inputs[0][0].numpy().copy())

    handle = model.get_output_embeddings().register_forward_pre_hook(observe, prepend=True)
    try:
        yield observed
    finally:
        handle.remove()
