"""Worker for llama.cpp through llama-cpp-python: plain decoding, or drafts by prompt lookup.

The package's high-level generation adds Python work to every token. This worker calls the library
directly and takes the argmax of its logits.
"""

from collections.abc import Callable, Iterator, Sequence

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

_UBATCH = 512


class _Context:
    """One sequence in a llama.cpp context."""

    def __init__(self, model: str, max_length: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = max_length, max_length, _UBATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(max_length, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def cut(self, length: int) -> None:
        """Removes everything from position `length` on."""
        llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1)

    def argmax(self, token_ids: Sequence[int], past: int, num_rows: int) -> list[int]:
        """Evaluates tokens after `past` others; returns the next token at the last rows."""
        batch, num_tokens = self._batch, len(token_ids)
        batch.n_tokens = num_tokens
        for index, token in enumerate(token_ids):
            batch.token[index], batch.pos[index] = token, past + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= num_tokens - num_rows
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama.cpp cannot evaluate {num_tokens} tokens after {past}")
        best = []
        for index in range(num_tokens - num_rows, num_tokens):
            row = llama_cpp.llama_get_logits_ith(self._context, index)
            best.append(int(np.ctypeslib.as_array(row, (self._vocab_size,)).argmax()))
        return best


def load(
    model: str, max_length: int, threads: int, num_lookup: int
) -> tuple[list[str], Callable[[Sequence[int], int], Iterator[list[int]]]]:
    """Loads the model, see `loop.py`; prompt lookup drafts `num_lookup` tokens, 0 for none."""
    context = _Context(model, max_length, threads)
    draft = LlamaPromptLookupDecoding(num_pred_tokens=num_lookup)

    def start(prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        context.cut(0)
        if num_lookup:
            return generate_with_lookup(context, draft, prompt_ids, max_new_tokens)
        return generate_plain(context, prompt_ids, max_new_tokens)

    return ["llama-cpp-python"], start


def generate_plain(
    context: _Context, prompt_ids: Sequence[int], max_new_tokens: int
) -> Iterator[list[int]]:
    """Yields one token for each step."""
    past, new_ids = 0, list(prompt_ids)
    for _ in range(max_new_tokens):
        best = context.argmax(new_ids, past, 1)
        past, new_ids = past + len(new_ids), best
        yield best


def generate_with_lookup(
    context: _Context,
    draft: LlamaPromptLookupDecoding,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
) -> Iterator[list[int]]:
    """Decodes greedily; a step also verifies the tokens that followed the same tokens before."""
    ids = np.array(prompt_ids, np.intc)
    best = context.argmax(prompt_ids, 0, 1)
    past, left = len(prompt_ids), max_new_tokens - 1
    yield best
    while left > 0:
        ids = np.append(ids, np.array(best, np.intc))
        drafted = [int(token) for token in draft(ids)][: left - 1]
        rows = context.argmax([best[-1], *drafted], past, 1 + len(drafted))
        num_agreed = next(
            (index for index, token in enumerate(drafted) if token != rows[index]), len(drafted)
        )
        best = rows[: num_agreed + 1]
        past, left = past + len(best), left - len(best)
        context.cut(past)
        yield best
