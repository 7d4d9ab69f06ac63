"""What rounding matrices of a model does to its next tokens, on texts that are given."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.weight_formats import Format, WeightFormat, is_rounded

Formats = Mapping[str, Format]
"""A format for each site, by its name; sites left out are as they are."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its reply.

    Attributes:
        prompt_ids: what comes before the reply.
        token_ids: the reply's n tokens, each of which is to be predicted.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A model with rounded matrices against itself.

    Attributes:
        kl: mean of KL(model, rounded) over the positions, nats.
        agreement: share of positions with the same argmax.
        hidden: what the unembedding and the heads read, (n, hidden_size) float32 for each text.
    """

    kl: float
    agreement: float
    hidden: list[NDArray[np.float32]]


class RoundedModel:
    """A model some of whose matrices are rounded, with what multiplies them. It can be undone."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], rounding: Rounding) -> None:
        """Takes the model as it is; rounded matrices come on top of its own in memory."""
        self.model = model
        self._rounding = rounding
        self._sites = {site.name: site for site in sites}
        self._formats: dict[str, Format] = {}
        self._undo: dict[str, list[_Replaced]] = {}

    def set(self, formats: Formats) -> None:
        """Rounds these sites and no others; those that stay in their format cost nothing."""
        wanted = {name: format_ for name, format_ in formats.items() if is_rounded(format_)}
        for name in [name for name, have in self._formats.items() if wanted.get(name) != have]:
            del self._formats[name]
            for replaced in self._undo.pop(name):
                replaced.undo()
        for name, format_ in wanted.items():
            if name not in self._formats:
                paths = self._sites[name].modules
                self._undo[name] = [self._replaced(path, format_) for path in paths]
                self._formats[name] = format_

    def _replaced(self, path: str, format_: WeightFormat) -> "_Replaced":
        module = self.model.get_submodule(path)
        own = module.weight
        assert isinstance(own, nn.Parameter)
        matrix = self._rounding.weight(own.detach().numpy().T, format_)
        # The parameter is replaced, not its data: an embedding may share it.
        module._parameters["weight"] = nn.Parameter(torch.from_numpy(matrix).T, False)

        def round_inputs(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            return self._rounding.inputs(inputs[0], format_)

        return _Replaced(module, own, module.register_forward_pre_hook(round_inputs))


@dataclass(frozen=True, slots=True)
class _Replaced:
    module: nn.Module
    own: nn.Parameter
    handle: RemovableHandle

    def undo(self) -> None:
        self.handle.remove()
        self.module._parameters["weight"] = self.own


class QuantizationMeter:
    """Compares a model with itself, its matrices rounded.

    It keeps the model's log-probabilities, (n, vocab_size) float32 for each text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        rounding: Rounding,
        texts: Sequence[Text],
    ) -> None:
        """Runs the model as it is on the texts."""
        self._rounded = RoundedModel(model, sites, rounding)
        self._texts = texts
        with torch.inference_mode():
            self._logprobs = [logits_of(model, text).log_softmax(-1) for text in texts]

    def measure(self, formats: Formats) -> Change:
        """Rounds these sites and no others, by their names, and compares."""
        self._rounded.set(formats)
        total, num_agreeing, hidden = 0.0, 0, []
        for text, logprobs in zip(self._texts, self._logprobs, strict=True):
            with torch.inference_mode(), _observed_hidden(self._rounded.model) as seen:
                found = logits_of(self._rounded.model, text).log_softmax(-1)
                divergence = nn.functional.kl_div(
                    found, logprobs, reduction="none", log_target=True
                )
                total += float(divergence.sum(dtype=torch.float64))
                num_agreeing += int((found.argmax(-1) == logprobs.argmax(-1)).sum())
            hidden.append(seen[0])
        num_positions = sum(len(text.token_ids) for text in self._texts)
        return Change(total / num_positions, num_agreeing / num_positions, hidden)


def logits_of(model: PreTrainedModel, text: Text) -> torch.Tensor:
    """The logits (n, vocab_size) that predict each of the reply's tokens."""
    ids = [*text.prompt_ids, *text.token_ids[:-1]]

    def select(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0][:, len(text.prompt_ids) - 1 :]

    # First of the hooks, so that the others see what is predicted from and nothing else.
    handle = model.get_output_embeddings().register_forward_pre_hook(select, prepend=True)
    try:
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits


@contextmanager
def _observed_hidden(model: PreTrainedModel) -> Iterator[list[NDArray[np.float32]]]:
    """Collects what the final norm gives, which unembedding and heads read, at selected rows."""
    seen: list[NDArray[np.float32]] = []

    def observe(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append(inputs[0][0].numpy().copy())

    handle = model.get_output_embeddings().register_forward_pre_hook(observe, prepend=True)
    try:
        yield seen
    finally:
        handle.remove()
