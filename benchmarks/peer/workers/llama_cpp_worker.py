"""Worker for llama.cpp through llama-cpp-python: plain decoding, or drafts by prompt lookup.

The package's high-level generation adds Python work to every token. This worker calls the library
directly and takes the argmax of its logits.

As a script it converts a file: python llama_cpp_worker.py SOURCE TARGET PRECISION
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

_UBATCH = 512
_PRECISIONS = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


class _Context:
    """A llama.cpp context with one sequence or several, each with `max_length` positions."""

    def __init__(self, model: str, max_length: int, threads: int, num_sequences: int = 1) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        num_rows = max_length * num_sequences
        params.n_ctx, params.n_batch, params.n_ubatch = num_rows, num_rows, _UBATCH
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(num_rows, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def cut(self, length: int, sequence: int = 0) -> None:
        """Removes everything of a sequence from position `length` on."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def argmax(self, token_ids: Sequence[int], past: int, num_rows: int) -> list[int]:
        """Evaluates tokens after `past` others; returns the next token at the last rows."""
        is_wanted = [False] * (len(token_ids) - num_rows) + [True] * num_rows
        rows = enumerate(zip(token_ids, is_wanted, strict=True), past)
        return self.evaluate([(token, position, 0, wanted) for position, (token, wanted) in rows])

    def evaluate(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Evaluates rows of token, position, sequence and whether its next token is wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, is_wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = is_wanted
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama.cpp cannot evaluate {len(rows)} tokens")
        best = []
        for index, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(self._context, index)
                best.append(int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax()))
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


def load_many(
    model: str, max_length: int, threads: int, num_lookup: int, concurrency: int
) -> tuple[list[str], Callable[[Sequence[Sequence[int]], int], Iterator[dict[int, list[int]]]]]:
    """Loads the model for several sequences, see `loop.py`."""
    if num_lookup:
        raise ValueError("several sequences with prompt lookup are not implemented")
    context = _Context(model, max_length, threads, concurrency)

    def start(
        prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Iterator[dict[int, list[int]]]:
        return generate_many(context, prompts, max_new_tokens, concurrency)

    return ["llama-cpp-python"], start


def generate_many(
    context: _Context, prompts: Sequence[Sequence[int]], max_new_tokens: int, concurrency: int
) -> Iterator[dict[int, list[int]]]:
    """Yields one token for each running sequence and step, by the index of its prompt.

    As in llama.cpp's server, a new prompt is read in the same step in which others advance.
    """
    free, waiting = list(range(concurrency)), list(range(len(prompts)))
    sequences: dict[int, int] = {}
    replies: list[list[int]] = [[] for _ in prompts]
    while waiting or sequences:
        rows = []
        for prompt, sequence in sequences.items():
            reply = replies[prompt]
            rows.append((reply[-1], len(prompts[prompt]) + len(reply) - 1, sequence, True))
        while waiting and free:
            sequences[waiting[0]] = sequence = free.pop(0)
            ids = prompts[waiting.pop(0)]
            context.cut(0, sequence)
            last = len(ids) - 1
            rows += [(token, index, sequence, index == last) for index, token in enumerate(ids)]
        step = dict(zip(sequences, context.evaluate(rows), strict=True))
        yield {prompt: [token] for prompt, token in step.items()}
        for prompt, token in step.items():
            replies[prompt].append(token)
            if len(replies[prompt]) == max_new_tokens:
                free.append(sequences.pop(prompt))


def load_rows(
    model: str, threads: int, pasts: Sequence[int]
) -> tuple[list[str], Callable[[int, int, bool], Callable[[], object]]]:
    """Loads the model with a sequence for each past, and one to read prompts; see `loop.py`."""
    context = _Context(model, max(pasts) + _UBATCH, threads, 1 + len(pasts))
    sequences = {past: sequence for sequence, past in enumerate(pasts, 1)}
    for past, sequence in sequences.items():
        context.evaluate([(0, index, sequence, index == past - 1) for index in range(past)])

    def prepare(rows: int, past: int, is_prefill: bool) -> Callable[[], object]:
        sequence = 0 if is_prefill else sequences[past]
        context.cut(past, sequence)
        wanted = range(rows - 1 if is_prefill else 0, rows)
        inputs = [(index, past + index, sequence, index in wanted) for index in range(rows)]
        return lambda: context.evaluate(inputs)

    return ["llama-cpp-python"], prepare


def quantize(source: str, target: str, precision: str) -> int:
    """Converts a file with the settings of llama.cpp's tool; returns 0 on success."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = _PRECISIONS[precision], True
    llama_cpp.llama_backend_init()
    return int(
        llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    )


if __name__ == "__main__":
    sys.exit(quantize(*sys.argv[1:]))
