"""Heads that draft from the most frequent tokens only, which takes less time (FR-Spec's finding).

The product with the unembedding takes most of the heads' time, and few tokens make up most of a
text (Zhao et al. 2025, "FR-Spec", arXiv 2502.14856). What is generated does not change: a token
that the heads cannot draft is decoded without a draft.
"""

import gzip
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.weights.lazy_tensor import select_rows
from medusa_trt.files import read_text

Counts = NDArray[np.float64]

_WORDS_FILE = "word_counts.txt.gz"


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, source: Path | None
) -> Counts:
    """Counts how often each token occurs.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: size of the model's vocabulary.
        source: a text file, or a folder that `medusa-trt train data` wrote, whose replies are
            counted; None for the words in `export/models/shipped/word_counts.txt.gz`, each with its
            number in 640 replies of the demo model.

    Returns:
        (vocab_size,) counts.

    Raises:
        HeadsError: the source cannot be read, or it holds tokens of another vocabulary.
    """
    counts = np.zeros(vocab_size)
    if source is None:
        packed = resources.files("medusa_trt.export.models.shipped") / _WORDS_FILE
        lines = gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
        weights, words = zip(*(line.split(" ", 1) for line in lines), strict=True)
        encoded = tokenizer([json.loads(word) for word in words], add_special_tokens=False)
        for weight, token_ids in zip(weights, encoded["input_ids"], strict=True):
            np.add.at(counts, token_ids, float(weight))
        return counts
    token_ids = _read_replies(source) if source.is_dir() else _encode_file(tokenizer, source)
    if len(token_ids) and token_ids.max() >= vocab_size:
        raise HeadsError(
            f"{source} holds token {token_ids.max()}, the model has {vocab_size}: give data of "
            "this model"
        )
    return counts + np.bincount(token_ids, minlength=vocab_size)


def _encode_file(tokenizer: PreTrainedTokenizerBase, path: Path) -> NDArray[np.int64]:
    return np.array(tokenizer(read_text(path, HeadsError), add_special_tokens=False)["input_ids"])


def _read_replies(folder: Path) -> NDArray[np.int64]:
    parts = []
    for path in sorted(folder.glob("shard-*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                parts.append(file.get_tensor("token_ids")[file.get_tensor("turns") > 0])
        except (OSError, SafetensorError) as error:
            raise HeadsError(f"cannot read {path}: {error}") from error
    if not parts:
        raise HeadsError(f"{folder} holds no training data: give a folder of medusa-trt train data")
    return np.concatenate(parts).astype(np.int64)


def keep_frequent_tokens(heads: MedusaHeads, counts: Counts, num_tokens: int) -> MedusaHeads:
    """Makes heads that draft from the most frequent tokens only.

    Among tokens of equal counts the smaller ids are taken, since vocabularies number tokens in the
    order in which they were merged.

    Args:
        heads: the heads; matrices that are not read yet stay so.
        counts: (vocab,) counts of the backbone's tokens.
        num_tokens: tokens to keep.

    Raises:
        HeadsError: the heads draft from fewer tokens than that already.
    """
    offered = torch.arange(len(counts)) if heads.token_map is None else heads.token_map
    if not 1 <= num_tokens <= len(offered):
        raise HeadsError(
            f"--draft-vocabulary is {num_tokens}: these heads draft from {len(offered)} tokens, "
            "give 1 to that many"
        )
    order = np.lexsort((offered.numpy(), -counts[offered.numpy()]))
    rows = torch.from_numpy(np.sort(order[:num_tokens]))
    kept: dict[int, torch.Tensor] = {}  # A common unembedding stays common.
    for head in heads.heads:
        if (matrix := head.unembedding) is not None and id(matrix) not in kept:
            kept[id(matrix)] = (
                matrix.new_empty(num_tokens, matrix.shape[1]) if matrix.is_meta else matrix[rows]
            )
    unread = dict(heads.unread)
    if "unembedding" in unread:
        unread["unembedding"] = tuple(
            select_rows(tensor, rows.numpy()) for tensor in unread["unembedding"]
        )
    return replace(
        heads,
        heads=tuple(
            head
            if head.unembedding is None
            else replace(head, unembedding=kept[id(head.unembedding)])
            for head in heads.heads
        ),
        token_map=offered[rows],
        unread=unread,
    )
