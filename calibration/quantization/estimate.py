"""What rounding each matrix alone does to the next tokens, to second order, from gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.meter import Text, logits_of
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.weight_formats import WeightFormat

NUM_SAMPLES = 8

SiteKls = dict[str, dict[str, float]]
"""KL divergence in nats, by format and site."""


class SiteEstimator:
    """Estimates the KL divergence that each site causes when it alone is rounded.

    Let d be how rounding a site changes its outputs. To second order KL(model, rounded) is d'Fd / 2
    with the Fisher information F, the mean of gg' over tokens drawn from the model itself, g being
    the gradient of their log-likelihood with respect to the outputs. So half the mean of (g'd)² is
    the estimate, and a few draws serve all sites and formats at once. With S draws on each of T
    texts its relative standard error is about sqrt(2 / (S T)).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        rounding: Rounding,
        formats: Sequence[WeightFormat],
    ) -> None:
        """Rounds every matrix to every format; the differences are kept, as float16.

        Args:
            model: with its weights in memory as float32, which get no gradients from here on.
            sites: of the model.
            rounding: how it rounds.
            formats: to estimate.
        """
        self._model, self._rounding, self._formats = model, rounding, formats
        self._site_of = {path: site.name for site in sites for path in site.modules}
        model.requires_grad_(False)
        self._changes: dict[tuple[str, WeightFormat], torch.Tensor] = {}
        for path in self._site_of:
            matrix = model.get_parameter(f"{path}.weight").detach().numpy().T
            for format_ in formats:
                change = torch.from_numpy(rounding.weight(matrix, format_) - matrix)
                self._changes[path, format_] = change.half()

    def estimate(self, text: Text, seed: int, num_samples: int = NUM_SAMPLES) -> SiteKls:
        """The sums over a text's positions.

        Args:
            text: the text.
            seed: of the draws.
            num_samples: draws of all tokens.
        """
        generator = torch.Generator().manual_seed(seed)
        totals = {format_: dict.fromkeys(self._site_of.values(), 0.0) for format_ in self._formats}
        with _differentiable(self._model), self._observed() as seen:
            logprobs = logits_of(self._model, text).log_softmax(-1)
        moved = {
            (path, format_): self._moved(path, inputs, format_)
            for path, (inputs, _) in seen.items()
            for format_ in self._formats
        }
        outputs = [output for _, output in seen.values()]
        for _ in range(num_samples):
            drawn = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
            likelihood = logprobs.gather(1, drawn).sum()
            gradients = dict(
                zip(seen, torch.autograd.grad(likelihood, outputs, retain_graph=True), strict=True)
            )
            for format_, sites in totals.items():
                slopes = dict.fromkeys(sites, 0.0)
                for path, site in self._site_of.items():
                    slopes[site] += float((gradients[path] * moved[path, format_]).sum())
                for site, slope in slopes.items():
                    sites[site] += slope * slope / (2 * num_samples)
        return {str(format_): sites for format_, sites in totals.items()}

    def _moved(self, path: str, inputs: torch.Tensor, format_: WeightFormat) -> torch.Tensor:
        """How rounding changes the outputs of a module."""
        weight = self._model.get_parameter(f"{path}.weight")
        rounded = self._rounding.inputs(inputs, format_)
        change = rounded @ self._changes[path, format_].float()
        return change if rounded is inputs else change + (rounded - inputs) @ weight.T

    @contextmanager
    def _observed(self) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Collects the inputs and outputs of each module."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        names = {id(self._model.get_submodule(path)): path for path in self._site_of}

        def observe(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen[names[id(module)]] = inputs[0].detach(), output

        modules = [self._model.get_submodule(path) for path in self._site_of]
        handles = [module.register_forward_hook(observe) for module in modules]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Gives gradients to what a model computes from its embeddings, not to its weights."""

    def require(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    handle = model.get_input_embeddings().register_forward_hook(require)
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()
