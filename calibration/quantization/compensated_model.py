"""Rounds a model's matrices in the order in which they run, each for the inputs that it gets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.compensation import (
    choose_better,
    factor_moments,
    round_compensated,
    values_from_nearest,
)
from medusa_trt.calibration.quantization.meter import Formats, Text
from medusa_trt.export.quantization.grid import RoundedMatrix, matrix_from_values
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.weight_formats import WeightFormat, is_rounded

_ROWS = 4096
"""Inputs that are summed up at a time."""


def list_compensated_sites(
    model: PreTrainedModel, sites: Sequence[Site], rounding: Rounding, formats: Formats
) -> list[Site]:
    """Lists the sites that a plan rounds to whole numbers.

    An unembedding that is the table of token embeddings too is left out: the table is rounded to
    nearest, and a bundle holds both as one.
    """
    embedding = model.get_input_embeddings().weight
    return [
        site
        for site in sites
        if is_rounded(format_ := formats[site.name])
        and rounding.find_grid(site.shapes[0][0], format_) is not None
        and all(model.get_submodule(path).weight is not embedding for path in site.modules)
    ]


def compensate_model(
    model: PreTrainedModel,
    sites: Sequence[Site],
    rounding: Rounding,
    formats: Formats,
    texts: Sequence[Text],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, RoundedMatrix]:
    """Rounds the matrices of a plan so that they make up for each other's errors on some texts.

    The texts run through the model once, all side by side. Each matrix is rounded when its inputs
    come, which are those of a model whose earlier matrices are rounded already, so the moments of
    one site are in memory at a time. The model is left as it was.

    Args:
        model: the unrounded model, its weights in memory as float32.
        sites: all sites of the model.
        rounding: how the target rounds.
        formats: the plan, a format for each site.
        texts: texts such as the model will read and write.
        advance: called after each site of `list_compensated_sites`.

    Returns:
        The matrices of these sites, by parameter name.
    """
    compensated = list_compensated_sites(model, sites, rounding, formats)
    names = {site.name for site in compensated}
    token_ids, is_read = _pad_texts(texts)
    observer = _Observer(model, rounding, is_read.flatten(), advance)
    try:
        for site in sites:
            if is_rounded(format_ := formats[site.name]):
                observer.watch(site, format_, is_compensated=site.name in names)
        observer.skip_unembedding()
        with torch.inference_mode():
            model(token_ids, use_cache=False)
    finally:
        observer.undo()
    return observer.matrices


def _pad_texts(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts texts side by side, each repeated up to the longest, and tells which tokens count.

    No token reads the ones after it, so the padding changes nothing before it.
    """
    all_ids = [[*text.prompt_ids, *text.token_ids] for text in texts]
    longest = max(map(len, all_ids))
    padded = [(ids * -(-longest // len(ids)))[:longest] for ids in all_ids]
    lengths = torch.tensor([len(ids) for ids in all_ids])
    return torch.tensor(padded), torch.arange(longest) < lengths[:, None]


@dataclass(slots=True)
class _Observer:
    """The hooks of a run, and what they have rounded."""

    model: PreTrainedModel
    rounding: Rounding
    is_read: torch.Tensor
    advance: Callable[[], None]
    matrices: dict[str, RoundedMatrix] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)
    _unrounded: dict[nn.Module, nn.Parameter] = field(default_factory=dict)

    def watch(self, site: Site, format_: WeightFormat, *, is_compensated: bool) -> None:
        """Rounds a site's matrices and inputs as soon as the site runs."""

        def receive(module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            x = self.rounding.round_inputs(inputs[0], format_)
            if module not in self._unrounded:
                moments = self._sum_moments(x) if is_compensated else None
                self._round(site, format_, moments)
            return x

        for path in site.modules:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(receive))

    def skip_unembedding(self) -> None:
        """Lets the unembedding run on one token of each text, once its inputs were seen."""

        def select(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            return inputs[0][:, :1]

        module = self.model.get_output_embeddings()
        self._handles.append(module.register_forward_pre_hook(select))

    def undo(self) -> None:
        """Gives the model its matrices back."""
        for handle in self._handles:
            handle.remove()
        for module, weight in self._unrounded.items():
            module._parameters["weight"] = weight

    def _sum_moments(self, x: torch.Tensor) -> torch.Tensor:
        """Sums xx' over the inputs of all tokens that count, (inputs, inputs) float64."""
        rows = x.flatten(0, -2)
        if len(rows) == len(self.is_read):
            rows = rows[self.is_read]
        moments = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for part in rows.split(_ROWS):
            moments += part.T @ part
        return moments

    def _round(self, site: Site, format_: WeightFormat, moments: torch.Tensor | None) -> None:
        factors = None if moments is None else factor_moments(moments)
        for path in site.modules:
            module = self.model.get_submodule(path)
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            self._unrounded[module] = weight
            matrix = weight.detach()
            values = values_from_nearest(self.rounding.round_weight(matrix.numpy().T, format_))
            grid = self.rounding.find_grid(matrix.shape[1], format_)
            # What needs no rounding is stored as it is by any export.
            if moments is not None and grid is not None and not torch.equal(values, matrix):
                if factors is not None:
                    compensated = round_compensated(matrix, factors, grid)
                    values, _, _ = choose_better(matrix, moments, compensated, values)
                self.matrices[f"{path}.weight"] = matrix_from_values(values.numpy(), grid)
            # A new parameter is set instead of new data, since an embedding may share the old one.
            module._parameters["weight"] = nn.Parameter(values, requires_grad=False)
        if moments is not None:
            self.advance()
