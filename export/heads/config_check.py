"""Compares the config of heads with the tensors beside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from medusa_trt.export.heads.formats import HeadsFacts

_NUM_HEADS_KEYS = ("medusa_num_heads", "num_medusa_heads")
_NUM_LAYERS_KEYS = ("medusa_num_layers", "num_medusa_layers")
_NESTED_KEYS = ("medusa", "medusa_config")
"""Keys under which a model's config can hold the config of its heads."""

_DRAFT_MODEL_TYPE = "medusa"
"""The `model_type` of vLLM's configs, which have further keys."""


def find_contradiction(config: Mapping[str, object], facts: HeadsFacts, path: Path) -> str | None:
    """Says where a config, of any format, contradicts the tensors; None where they agree."""
    wrong = [
        f"{key} {stated} where the tensors have {actual}"
        for key, stated, actual in _list_statements(config, facts)
        if stated is not None and stated != actual
    ]
    return f"{path} says {' and '.join(wrong)}: using the tensors" if wrong else None


def _list_statements(
    config: Mapping[str, object], facts: HeadsFacts
) -> Iterator[tuple[str, object, object]]:
    """Lists each key with its value in the config, None if it is absent, and the tensors' value."""
    places: list[tuple[str, Mapping[str, object]]] = [("", config)]
    for name in _NESTED_KEYS:
        if isinstance(nested := config.get(name), dict):
            places.append((f"{name}.", nested))
    for prefix, place in places:
        for key in _NUM_HEADS_KEYS:
            yield prefix + key, place.get(key), facts.num_heads
        for key in _NUM_LAYERS_KEYS:
            yield prefix + key, place.get(key), facts.num_layers
    yield "hidden_size", config.get("hidden_size"), facts.hidden_size
    if facts.draft_vocab_size is not None and not facts.has_token_map:
        yield "vocab_size", config.get("vocab_size"), facts.draft_vocab_size
    if config.get("model_type") == _DRAFT_MODEL_TYPE:
        yield "num_heads", config.get("num_heads"), facts.num_heads
        yield "num_hidden_layers", config.get("num_hidden_layers"), facts.num_layers
        yield "medusa_fc_bias", config.get("medusa_fc_bias"), facts.has_biases
        if facts.num_heads > 1:
            is_common = facts.unembedding == "common"
            yield "original_lm_head", config.get("original_lm_head"), is_common
        if facts.draft_vocab_size is not None:
            truncated_size = config.get("truncated_vocab_size")
            yield "truncated_vocab_size", truncated_size, facts.draft_vocab_size
