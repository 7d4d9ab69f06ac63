"""Estimates the effect of rounding each matrix alone, to second order, from gradients."""

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
    """Estimates the KL divergence that each site causes if it alone is rounded.

    Let d be the change of a site's outputs by rounding. To second order KL(model, rounded) is
    d'Fd / 2. F is the Fisher information: the mean of gg' over tokens drawn from the model itself,
    where g is the gradient of their log-likelihood with respect to the outputs. So the estimate is
    half the mean of (g'd)², and a few draws serve all sites and formats at once. With S draws on
    each of T texts its relative standard error is about sqrt(2 / (S T)).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        rounding: Rounding,
        formats: Sequence[WeightFormat],
    ) -> None:
        """Rounds every matrix to every format, and keeps the differences as float16.

        The model's weights are in memory as float32; they get no gradients from here on.
        """
        self._model, self._rounding, self._formats = model, rounding, formats
        self._site_of = {path: site.name for site in sites for path in site.modules}
        model.requires_grad_(False)
        self._weight_changes: dict[tuple[str, WeightFormat], torch.Tensor] = {}
        for path in self._site_of:
            matrix = model.get_parameter(f"{path}.weight").detach().numpy().T
            for format_ in formats:
                change = torch.from_numpy(rounding.round_weight(matrix, format_) - matrix)
                self._weight_changes[path, format_] = change.half()

    def estimate(self, text: Text, seed: int, num_samples: int = NUM_SAMPLES) -> SiteKls:
        """Estimates the sums of KL divergences over a text's positions, in nats."""
        generator = torch.Generator().manual_seed(seed)
        totals = {format_: dict.fromkeys(self._site_of.values(), 0.0) for format_ in self._formats}
        with _differentiable(self._model), self._observe_modules() as observed:
            logprobs = logits_of(self._model, text).log_softmax(-1)
        changes = {
            (path, format_): self._output_change(path, inputs, format_)
            for path, (inputs, _) in observed.items()
            for format_ in self._formats
        }
        outputs = [output for _, output in observed.values()]
        for _ in range(num_samples):
            drawn = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
            likelihood = logprobs.gather(1, drawn).sum()
            all_gradients = torch.autograd.grad(likelihood, outputs, retain_graph=True)
            gradients = dict(zip(observed, all_gradients, strict=True))
            for format_, sites in totals.items():
                slopes = dict.fromkeys(sites, 0.0)
                for path, site in self._site_of.items():
                    slopes[site] += float((gradients[path] * changes[path, format_]).sum())
                for site, slope in slopes.items():
                    sites[site] += slope * slope / (2 * num_samples)
        return {str(format_): sites for format_, sites in totals.items()}

    def _output_change(
        self, path: str, inputs: torch.Tensor, format_: WeightFormat
    ) -> torch.Tensor:
        """Change of a module's outputs by rounding."""
        weight = self._model.get_parameter(f"{path}.weight")
        rounded = self._rounding.round_inputs(inputs, format_)
        change = rounded @ self._weight_changes[path, format_].float()
        return change if rounded is inputs else change + (rounded - inputs) @ weight.T

    @contextmanager
    def _observe_modules(self) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Collects the inputs and outputs of each module."""
        observed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        names = {id(self._model.get_submodule(path)): path for path in self._site_of}

        def observe(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            observed[names[id(module)]] = inputs[0].detach(), output

        modules = [self._model.get_submodule(path) for path in self._site_of]
        handles = [module.register_forward_hook(observe) for module in modules]
        try:
            yield observed
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Gives gradients to the activations of a model, but not to its weights."""

    def require(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    handle = model.get_input_embeddings().register_forward_hook(require)
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()
