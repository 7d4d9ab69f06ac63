"""llama.cpp's library, whose model is a pseudo-random function of the text of a sequence.

A row sees all tokens of its sequence at positions up to its own; a position may not be left out.
"""

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

VOCAB_SIZE = 17


def next_token(text: list[int]) -> int:
    """The greedy next token after a text; it depends on the last three tokens alone."""
    return int(np.random.default_rng(text[-3:]).integers(VOCAB_SIZE))


def reply_slowly(prompt: list[int], length: int) -> list[int]:
    """The greedy reply to a prompt, token by token."""
    text = list(prompt)
    for _ in range(length):
        text.append(next_token(text))
    return text[len(prompt) :]


class FakeLlamaCpp(ModuleType):
    """The functions of `llama_cpp` that the worker calls.

    Attributes:
        sizes: number of rows of each evaluation.
        quantized: the arguments of each conversion of a file.
    """

    LLAMA_FTYPE_MOSTLY_Q4_0, LLAMA_FTYPE_MOSTLY_Q4_1, LLAMA_FTYPE_MOSTLY_Q8_0 = 2, 3, 7
    LLAMA_FTYPE_MOSTLY_Q4_K_M = 15

    def __init__(self) -> None:
        super().__init__("llama_cpp")
        self.sizes: list[int] = []
        self.quantized: list[tuple[bytes, bytes, int]] = []
        self._rows: dict[int, dict[int, int]] = {}
        self._logits: list[Any] = []
        self._num_rows = 0

    def __getattr__(self, name: str) -> Any:
        """Functions that only make something which others read."""
        if name.startswith("llama_"):
            return lambda *_: SimpleNamespace()
        raise AttributeError(name)

    def llama_init_from_model(self, model: object, params: SimpleNamespace) -> object:
        self._num_rows = params.n_ctx
        assert params.n_batch == params.n_ctx and params.n_threads == params.n_threads_batch
        self._rows = {sequence: {} for sequence in range(params.n_seq_max)}
        return SimpleNamespace()

    def llama_batch_init(self, num_rows: int, *_: int) -> SimpleNamespace:
        names = ("token", "pos", "n_seq_id", "logits")
        arrays = {name: [0] * num_rows for name in names}
        return SimpleNamespace(**arrays, seq_id=[[0] for _ in range(num_rows)], n_tokens=0)

    def llama_vocab_n_tokens(self, vocab: object) -> int:
        return VOCAB_SIZE

    def llama_memory_seq_rm(self, memory: object, sequence: int, first: int, end: int) -> None:
        rows = self._rows[sequence]
        for position in [place for place in rows if place >= first]:
            del rows[position]

    def llama_decode(self, context: object, batch: SimpleNamespace) -> int:
        self.sizes.append(batch.n_tokens)
        self._logits = []
        for index in range(batch.n_tokens):
            assert batch.n_seq_id[index] == 1
            rows = self._rows[batch.seq_id[index][0]]
            position = batch.pos[index]
            assert position == len(rows), "a position was left out or is taken"
            rows[position] = batch.token[index]
            logits = np.zeros(VOCAB_SIZE, np.float32)
            logits[next_token([rows[place] for place in range(position + 1)])] = 1
            self._logits.append(logits if batch.logits[index] else None)
        return int(sum(map(len, self._rows.values())) > self._num_rows)

    def llama_get_logits_ith(self, context: object, index: int) -> Any:
        logits = self._logits[index]
        assert logits is not None, "the logits of this row were not wanted"
        return logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def llama_model_quantize(self, source: bytes, target: bytes, params: Any) -> int:
        self.quantized.append((source, target, params._obj.ftype))
        return 0 if params._obj.allow_requantize else 1

    def llama_model_quantize_default_params(self) -> ctypes.Structure:
        class Params(ctypes.Structure):
            _fields_ = [("ftype", ctypes.c_int), ("allow_requantize", ctypes.c_bool)]

        return Params(0, False)


class LookupDecoding:
    """Drafts what followed the last token where it occurred before, as the package's class does."""

    def __init__(self, num_pred_tokens: int) -> None:
        self._num_tokens = num_pred_tokens

    def __call__(self, ids: Any) -> Any:
        text = ids.tolist()
        for place in range(len(text) - 2, -1, -1):
            if text[place] == text[-1]:
                return ids[place + 1 : place + 1 + self._num_tokens]
        return ids[:0]
