"""Names that checkpoints give to the tensors of a model."""

from typing import NamedTuple

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from medusa_trt.export.models.multimodal.text_part import TextPart


class Place(NamedTuple):
    """The place of a stored tensor in a model.

    Attributes:
        name: name of the parameter or buffer, which the model may lack; None for a tensor that
            belongs to another part of the checkpoint, such as an encoder of images.
        is_converted: whether the parameter is made from this tensor and others.
    """

    name: str | None
    is_converted: bool


class StoredNames:
    """Finds the parameters that the tensors of a checkpoint belong to.

    transformers knows the names of older checkpoints and of those that other tools publish. They
    lead to a parameter of the whole model, which is the same object in its language model.
    """

    def __init__(self, part: TextPart) -> None:
        """Reads what transformers knows about the names in checkpoints of the whole model."""
        mapping = get_model_conversion_mapping(part.whole)
        self._renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
        self._converters = [step for step in mapping if isinstance(step, WeightConverter)]
        self._prefix = part.whole.base_model_prefix
        self._state = part.whole.state_dict()
        self._modules = part.map_modules()

    def find(self, key: str) -> Place:
        """Finds the place of a tensor by its name in the checkpoint, without names of wrappers."""
        name, converted = rename_source_key(
            key, self._renamings, self._converters, self._prefix, self._state
        )
        name = key if key in self._state and name not in self._state else name
        return Place(self.translate(name), converted is not None)

    def translate(self, name: str) -> str | None:
        """Translates a name in the whole model into one in its language model."""
        module, rest = name, ""
        while module:
            module, _, key = module.rpartition(".")
            rest = f"{key}.{rest}" if rest else key
            if module in self._modules:
                place = self._modules[module]
                return f"{place}.{rest}" if place else rest
        return None
