"""The tokens that end a reply, from all places where a checkpoint names one.

If generation does not stop at an end token, the model goes on and invents further turns.
"""

from collections.abc import Iterable, Mapping

from transformers import PreTrainedTokenizerBase

from medusa_trt.errors import ExportError

END_TOKENS = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]",
        "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|eot|>", "<|eom|>",
        "<|end_of_role|>", "<|end▁of▁sentence|>", "<｜end▁of▁sentence｜>",
    )
)  # fmt: skip
"""Names that public models give to such tokens (llama.cpp, src/llama-vocab.cpp)."""

_HARMONY = {"<|return|>", "<|call|>"}
"""A model with both of these ends a message, not its turn, by `<|end|>` (OpenAI's Harmony)."""

_REPLY = "xyz"


def end_token_ids(
    tokenizer: PreTrainedTokenizerBase, stated: Iterable[object], vocab_size: int, model: str
) -> list[int]:
    """Collects the ids of all tokens that end a reply.

    Args:
        tokenizer: the tokenizer of the model.
        stated: the values of eos_token_id in configs and files: ids, lists of ids, None.
        vocab_size: the model's number of tokens; ids outside of it, such as -1, are left out.
        model: name of the model for error messages.

    Returns:
        The ids: those in `stated`, that of the tokenizer, added tokens with a known name, and the
        token that the chat template writes behind a reply. In rising order.

    Raises:
        ExportError: a value in `stated` is not an id.
    """
    ids: set[int] = set()
    for value in (*stated, tokenizer.eos_token_id):
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is None:
                continue
            if type(token_id) is not int:
                raise ExportError(
                    f"{model} ends its replies by {token_id!r}, which is not a token id: "
                    "correct eos_token_id in its generation_config.json"
                )
            ids.add(token_id)
    # Not all of them are marked as special in every checkpoint.
    added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    ids |= {token_id for name, token_id in added.items() if name in END_TOKENS}
    closing = _find_closing_token(tokenizer, added)
    if closing is not None:
        ids.add(closing)
    if added.keys() >= _HARMONY:
        ids.discard(added.get("<|end|>", -1))
    return sorted(token_id for token_id in ids if 0 <= token_id < vocab_size)


def _find_closing_token(tokenizer: PreTrainedTokenizerBase, added: Mapping[str, int]) -> int | None:
    """Finds the added token that the chat template writes directly behind a reply."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": _REPLY}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # A template is a program; what it refuses shows when it is used.
        return None
    assert isinstance(text, str)
    behind = text.rpartition(_REPLY)[2].lstrip()
    names = [name for name in added if behind.startswith(name)]
    return added[max(names, key=len)] if names else None
