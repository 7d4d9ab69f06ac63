"""Comparison of texts as a bundle's files read them with how the model's tokenizer does."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from medusa_trt.errors import ExportError, MedusaError
from medusa_trt.export.comparison.passages import PASSAGES
from medusa_trt.export.models.tokenizers import MIXED_TEXT
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import Message

_USER, _REPLY = {"role": "user", "content": "Hi,  why?\n"}, {"role": "assistant", "content": "So."}
_CONVERSATIONS: tuple[list[Message], ...] = (
    [_USER],
    [_USER, _REPLY, _USER],
    [{"role": "system", "content": "Be brief."}, _USER],
)
_NUM_SHOWN = 4


def compare_encodings(bundle: Bundle, tokenizer: PreTrainedTokenizerBase) -> None:
    """Encodes texts and conversations with the bundle's files, and compares the token ids.

    Args:
        bundle: the bundle; only its texts are read.
        tokenizer: the model's tokenizer, as transformers runs it.

    Raises:
        ExportError: an encoding or a decoding differs, which is shown, or has an id that the model
            lacks.
    """
    codec = TextCodec(bundle)
    vocab_size = bundle.manifest.model.vocab_size
    for text, bundle_ids, model_ids in _encode_all(codec, tokenizer):
        if bundle_ids != model_ids:
            index = next(
                (i for i, (a, b) in enumerate(zip(bundle_ids, model_ids, strict=False)) if a != b),
                min(len(bundle_ids), len(model_ids)),
            )
            raise ExportError(
                f"the bundle reads {text[:60]!r} from token {index} on as "
                f"{_show(tokenizer, bundle_ids, index)}, the model's tokenizer as "
                f"{_show(tokenizer, model_ids, index)}: please report this model"
            )
        if max(bundle_ids, default=0) >= vocab_size:
            index = next(i for i, token_id in enumerate(bundle_ids) if token_id >= vocab_size)
            token_id = bundle_ids[index]
            raise ExportError(
                f"the tokenizer reads {text[:60]!r} as token {token_id} "
                f"({tokenizer.convert_ids_to_tokens(token_id)!r}), the model has {vocab_size} "
                "tokens: give the tokenizer that it was trained with"
            )
        written = tokenizer.decode(
            bundle_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if codec.decode(bundle_ids) != written:
            raise ExportError(
                f"the bundle writes {text[:60]!r} as {codec.decode(bundle_ids)[:60]!r}: "
                "please report this model"
            )


def _encode_all(
    codec: TextCodec, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, list[int], list[int]]]:
    """Yields texts with the ids that the runtime and the tokenizer give them."""
    for text in (*MIXED_TEXT.splitlines(keepends=True), MIXED_TEXT, *PASSAGES):
        model_ids = tokenizer.encode(text)
        while model_ids[-1:] == [tokenizer.eos_token_id]:  # The runtime's texts are to go on.
            del model_ids[-1]
        yield text, codec.encode(text), model_ids
    for messages in _CONVERSATIONS if tokenizer.chat_template is not None else ():
        try:
            rendered = tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template is a program, which may refuse a conversation
            continue
        text = str(rendered)
        try:
            bundle_ids = codec.encode_chat(messages)
        except MedusaError as error:
            raise ExportError(f"{error}; transformers renders it as {text[:60]!r}") from error
        yield text, bundle_ids, tokenizer.encode(text, add_special_tokens=False)


def _show(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], start: int) -> str:
    excerpt = list(token_ids[start : start + _NUM_SHOWN])
    return f"{tokenizer.convert_ids_to_tokens(excerpt)} ({', '.join(map(str, excerpt))})"
