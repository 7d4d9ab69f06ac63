"""The names that head checkpoints give their tensors: three layouts under several prefixes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from medusa_trt.errors import HeadsError
from medusa_trt.files import join_names

Part = Literal["block", "projection", "root_map", "unembedding", "common_unembedding", "token_map"]

UNEMBEDDINGS: tuple[Part, ...] = ("unembedding", "common_unembedding")
_INDEX = "(?:0|[1-9][0-9]{0,3})"
_SCALES = {
    "weight_scale": "weight_scale",
    "weights_scaling_factor": "weight_scale",
    "input_scale": "input_scale",
    "activation_scaling_factor": "input_scale",
}
"""ModelOpt's and TensorRT-LLM's names of the scales that belong to FP8 weights."""

WRAPPERS = (
    r"_orig_mod\.",
    r"_fsdp_wrapped_module\.",
    r"_checkpoint_wrapped_module\.",
    r"^module\.",
)
"""Patterns of what torch's wrappers put into the names of tensors: of compiled, sharded, recomputed
and distributed modules."""

_PREFIX = re.compile(r"(?:base_model\.model\.)?(?:medusa_heads?\.)?(?:modules_to_save\.[^.]+\.)?")
_HEAD_PREFIX = re.compile(r"(?:base_model\.model\.)?medusa_heads?\.")
_FROZEN_COPY = re.compile(r"(?:base_model\.model\.)?medusa_heads?\.original_module\.")
_BACKBONE = re.compile(r"(?:base_model\.model\.)?(?:model|transformer|gpt_neox|backbone)\.")


class HeadKey(NamedTuple):
    """The role of a tensor, independent of its name in the file.

    Attributes:
        part: the part of a head that it belongs to.
        kind: `weight`, `bias`, or an FP8 scale of the weight or of the activations.
        head: index of the head; None if all heads share the tensor.
        layer: which block; of an unembedding the number of blocks before it, where the name says
            so, else None.
    """

    part: Part
    kind: str = "weight"
    head: int | None = None
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class KeyLayout:
    """Templates of a layout's names, without a prefix; None for a part that it lacks."""

    name: str
    block: str
    unembedding: str
    projection: str | None = None
    root_map: str | None = None
    common_unembedding: str | None = None
    token_map: str | None = None

    def parse(self, name: str) -> HeadKey | None:
        """Reads a name without its prefix; None if this layout has no such name."""
        for part, pattern in _make_patterns(self):
            if match := pattern.fullmatch(name):
                fields = match.groupdict()
                head, layer = fields.get("head"), fields.get("layer")
                kind = fields.get("kind") or "weight"
                return HeadKey(
                    part,
                    _SCALES.get(kind, kind),
                    None if head is None else int(head),
                    None if layer is None else int(layer),
                )
        return None

    def make_key(self, key: HeadKey) -> str:
        """Names a tensor, without a prefix; the layout must have its part."""
        template = getattr(self, key.part)
        assert template is not None
        return str(template.format(head=key.head, layer=key.layer, kind=key.kind))


@cache
def _make_patterns(layout: KeyLayout) -> tuple[tuple[Part, re.Pattern[str]], ...]:
    weight = "|".join(("weight", *_SCALES))
    kinds: dict[Part, str] = {
        "block": f"bias|{weight}",
        "projection": "weight|bias",
        "root_map": "weight|bias",
        "unembedding": weight,
        "common_unembedding": weight,
        "token_map": "",
    }
    patterns = []
    for part, kind in kinds.items():
        if template := getattr(layout, part):
            pattern = re.escape(template)
            for field, value in (("head", _INDEX), ("layer", _INDEX), ("kind", kind)):
                pattern = pattern.replace(rf"\{{{field}\}}", f"(?P<{field}>{value})")
            patterns.append((part, re.compile(pattern, re.ASCII)))
    return tuple(patterns)


SEQUENTIAL = KeyLayout(
    name="sequential",
    block="{head}.{layer}.linear.{kind}",
    unembedding="{head}.{layer}.{kind}",
    projection="{head}.projection.{kind}",
    root_map="{head}.root_map.{kind}",
    token_map="token_map",
)
"""FasterDecoding's: a head is `nn.Sequential` of blocks and an unembedding. This project adds the
projection, the root map and the token map."""

VLLM = KeyLayout(
    name="vllm",
    block="blocks.{head}.layers.{layer}.{kind}",
    unembedding="lm_heads.{head}.{kind}",
    common_unembedding="lm_head.{kind}",
    token_map="token_map",
)

TENSORRT_LLM = KeyLayout(
    name="tensorrt-llm",
    block="{head}.medusa_layers.{layer}.linear.{kind}",
    unembedding="{head}.lm_head.{kind}",
)

_LAYOUTS = (VLLM, TENSORRT_LLM, SEQUENTIAL)


@dataclass(frozen=True, slots=True)
class Recognized:
    """The keys of a checkpoint, sorted.

    Attributes:
        layout: what the heads' keys are named by.
        prefix: what stands before the heads' keys, `medusa_head.` for example.
        names: the file's name of each of the heads' tensors.
        others: keys of the backbone or of its adapter, in the file's order.
    """

    layout: KeyLayout
    prefix: str
    names: dict[HeadKey, str]
    others: tuple[str, ...]

    def name(self, key: HeadKey) -> str:
        """Gives the name that a file of this layout gives to a tensor."""
        return self.names.get(key) or self.prefix + self.layout.make_key(key)


def recognize(keys: Iterable[str], source: str) -> Recognized:
    """Finds the heads among a checkpoint's keys.

    Keys of a backbone may stand beside prefixed heads; anything else that no layout has is an
    error.

    Args:
        keys: the keys in the file.
        source: names the file in errors.

    Raises:
        HeadsError: keys that are unknown, or there twice under several prefixes; the error lists
            them.
    """
    stored = {key: strip_wrappers(key) for key in keys}
    stored = {key: name for key, name in stored.items() if not _FROZEN_COPY.match(name)}
    layout = next(
        layout
        for layout in _LAYOUTS
        if layout is SEQUENTIAL or any(_is_block(layout, name) for name in stored.values())
    )
    has_backbone = any(_BACKBONE.match(name) for name in stored.values())
    prefix = ""
    others: list[str] = []
    unknown: list[str] = []
    names: dict[HeadKey, str] = {}
    for key, name in stored.items():
        bare = _strip_prefix(name)
        parsed = layout.parse(bare)
        is_backbone = has_backbone and not _HEAD_PREFIX.match(name)
        if parsed is None or (is_backbone and parsed.part == "common_unembedding"):
            (others if is_backbone else unknown).append(key)
        elif parsed in names:
            raise HeadsError(
                f"{source} has {bare} twice, as {names[parsed]} and as {key}: with and without a "
                "prefix"
            )
        else:
            names[parsed] = key
            prefix = name[: -len(bare)] if parsed.part == "block" else prefix
    if unknown:
        raise HeadsError(f"{source} has keys that no head layout has: {join_names(unknown)}")
    return Recognized(layout, prefix, names, tuple(others))


def strip_wrappers(key: str) -> str:
    """Strips what torch's wrappers put into the names of tensors."""
    for pattern in WRAPPERS:
        key = re.sub(pattern, "", key)
    return key


def is_head_key(key: str) -> bool:
    """Whether a key is part of a head, in any layout."""
    name = strip_wrappers(key)
    return not _FROZEN_COPY.match(name) and any(_is_block(layout, name) for layout in _LAYOUTS)


def _strip_prefix(key: str) -> str:
    match = _PREFIX.match(key)
    assert match is not None
    return key[match.end() :]


def _is_block(layout: KeyLayout, key: str) -> bool:
    parsed = layout.parse(_strip_prefix(key))
    return parsed is not None and parsed.part == "block"
