"""Estimates from gradients, to second order, what rounding one matrix alone does to the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.meter import Text, compute_logits
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.weight_formats import WeightFormat

NUM_SAMPLES = 8
"""Number of tokens that are drawn at each position of a text."""

SiteKls = dict[str, dict[str, float]]
"""KL divergences in nats, by format, then by the name of the site."""


class SiteEstimator:
    """Estimates the KL divergence that each site causes if it alone is rounded.

    A site is a group of matrices that read the same input, see `Site`.

    Let d be the change of a site's outputs by rounding. To second order KL(model, rounded) is
    d'Fd / 2. F is the Fisher information: the mean of gg' over tokens drawn from the model itself,
    where g is the gradient of their log-likelihood with respect to the outputs. So the estimate is
    half the mean of (g'd)². The same few draws are used for all sites and formats. With S draws on
    each of T texts the relative standard error of the estimate is about sqrt(2 / (S T)).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        rounding: Rounding,
        formats: Sequence[WeightFormat],
    ) -> None:
        """Rounds every matrix to every format, and keeps the differences as float16.

        The model's weights must be in memory as float32; this turns their gradients off.
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
        with _enable_activation_gradients(self._model), self._observe_modules() as observed:
            logprobs = compute_logits(self._model, text).log_softmax(-1)
        changes = {
            (path, format_): self._output_change(path, inputs, format_)
            for path, (inputs, _) in observed.items()
            for format_ in self._formats
        }
        outputs = [output for _, output in observed.values()]
        for _ in range(num_samples):
            tokens = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
            log_likelihood = logprobs.gather(1, tokens).sum()
            all_gradients = torch.autograd.grad(log_likelihood, outputs, retain_graph=True)
            gradients = dict(zip(observed, all_gradients, strict=True))
            for format_, site_totals in totals.items():
                products = dict.fromkeys(site_totals, 0.0)  # g'd of each site
                for path, site in self._site_of.items():
                    products[site] += float((gradients[path] * changes[path, format_]).sum())
                for site, product in products.items():
                    site_totals[site] += product * product / (2 * num_samples)
        return {str(format_): site_totals for format_, site_totals in totals.items()}

    def _output_change(
        self, path: str, inputs: torch.Tensor, format_: WeightFormat
    ) -> torch.Tensor:
        """Computes by how much rounding changes a module's outputs."""
        weight = self._model.get_parameter(f"{path}.weight")
        rounded = self._rounding.round_inputs(inputs, format_)
        change = rounded @ self._weight_changes[path, format_].float()
        return change if rounded is inputs else change + (rounded - inputs) @ weight.T

    @contextmanager
    def _observe_modules(self) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Collects the inputs and outputs of each module, by its path."""
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
def _enable_activation_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Makes the activations of a model require gradients, but not its weights."""

    def require_gradient(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    handle = model.get_input_embeddings().register_forward_hook(require_gradient)
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()
