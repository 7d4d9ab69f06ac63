"""The matrices of a model that a quantization plan chooses formats for."""

import re
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

UNEMBEDDING = "unembedding"

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Matrices that the export multiplies as one, since they read the same value.

    Attributes:
        name: a name that is unique in the model, such as `layers.3.gate_up`.
        layer: index of its layer; None outside the layers.
        kind: common name of the modules, the same in every layer.
        modules: the linear layers' paths in the model, in the order in which they run.
        shapes: (inputs, outputs) of each matrix.
    """

    name: str
    layer: int | None
    kind: str
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(f"{module}.weight" for module in self.modules)

    @property
    def is_last(self) -> bool:
        """Whether it is the unembedding, which runs after all layers."""
        return self.kind == UNEMBEDDING

    @property
    def num_weights(self) -> int:
        """Elements of all matrices."""
        return sum(inputs * outputs for inputs, outputs in self.shapes)


def sites_from_model(model: PreTrainedModel) -> list[Site]:
    """Finds the sites by running a model with torch's linear layers on two tokens."""
    read: dict[tuple[str, int], list[str]] = {}
    alive: list[torch.Tensor] = []  # Keeps the inputs alive, so that no two have the same id.
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    names = {id(module): name for name, module in linears.items()}

    def observe(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        alive.append(inputs[0])
        name = names[id(module)]
        read.setdefault((name.rpartition(".")[0], id(inputs[0])), []).append(name)

    handles = [module.register_forward_pre_hook(observe) for module in linears.values()]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    unembedding = names[id(model.get_output_embeddings())]
    return _name_sites([_make_site(modules, linears, unembedding) for modules in read.values()])


def _make_site(modules: list[str], linears: dict[str, nn.Linear], unembedding: str) -> Site:
    layer = _LAYER.search(modules[0])
    parts = [name.rpartition(".")[2].removesuffix("_proj") for name in modules]
    kind = ("" if all(len(part) == 1 for part in parts) else "_").join(parts)
    return Site(
        name="",
        layer=None if layer is None else int(layer[1]),
        kind=UNEMBEDDING if modules == [unembedding] else kind,
        modules=tuple(modules),
        shapes=tuple(
            (linears[module].in_features, linears[module].out_features) for module in modules
        ),
    )


def _name_sites(sites: list[Site]) -> list[Site]:
    """Gives each site its name, with the parent's where a kind occurs twice in a layer."""
    places = [(site.layer, site.kind) for site in sites]
    named = []
    for site, place in zip(sites, places, strict=True):
        kind = site.kind
        if places.count(place) > 1:
            kind = f"{site.modules[0].split('.')[-2]}.{kind}"
        name = kind if site.layer is None else f"layers.{site.layer}.{kind}"
        named.append(replace(site, name=name, kind=kind))
    return named
