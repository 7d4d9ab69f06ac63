"""Comparison of a config with the tensors beside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from medusa_trt.export.heads.formats import HeadsFacts

_HEADS = ("medusa_num_heads", "num_medusa_heads")
_LAYERS = ("medusa_num_layers", "num_medusa_layers")
_NESTED = ("medusa", "medusa_config")
_DRAFT_MODEL = "medusa"


def find_contradiction(config: Mapping[str, object], facts: HeadsFacts, path: Path) -> str | None:
    """Says in a sentence where a config contradicts the tensors; None where they agree.

    Args:
        config: as its file has it, in any format.
        facts: from the tensors.
        path: the config's, for the sentence.
    """
    wrong = [
        f"{key} {stated} where the tensors have {actual}"
        for key, stated, actual in _list_statements(config, facts)
        if stated is not None and stated != actual
    ]
    return f"{path} says {' and '.join(wrong)}: using the tensors" if wrong else None


def _list_statements(
    config: Mapping[str, object], facts: HeadsFacts
) -> Iterator[tuple[str, object, object]]:
    """Lists each key with its value and with what it should be."""
    places: list[tuple[str, Mapping[str, object]]] = [("", config)]
    for name in _NESTED:
        if isinstance(nested := config.get(name), dict):
            places.append((f"{name}.", nested))
    for prefix, place in places:
        for keys, actual in ((_HEADS, facts.num_heads), (_LAYERS, facts.num_layers)):
            for key in keys:
                yield prefix + key, place.get(key), actual
    yield "hidden_size", config.get("hidden_size"), facts.hidden_size
    if facts.draft_vocab_size is not None and not facts.has_token_map:
        yield "vocab_size", config.get("vocab_size"), facts.draft_vocab_size
    if config.get("model_type") == _DRAFT_MODEL:
        yield "num_heads", config.get("num_heads"), facts.num_heads
        yield "num_hidden_layers", config.get("num_hidden_layers"), facts.num_layers
        yield "medusa_fc_bias", config.get("medusa_fc_bias"), facts.has_biases
        if facts.num_heads > 1:
            is_common = facts.unembedding == "common"
            yield "original_lm_head", config.get("original_lm_head"), is_common
        if facts.draft_vocab_size is not None:
            stated = config.get("truncated_vocab_size")
            yield "truncated_vocab_size", stated, facts.draft_vocab_size
