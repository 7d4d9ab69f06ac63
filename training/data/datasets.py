"""The Trainer's datasets: rows of stored hidden states, or whole conversations."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from medusa_trt.training.data.rows import LabelledTokens, ReplyRows
from medusa_trt.training.data.targets import TargetRule

Batch = dict[str, torch.Tensor]


def count_rows(batch: Batch) -> int:
    """Counts the reply tokens of a batch of either dataset that another reply token follows."""
    return len(batch["hidden"]) if "hidden" in batch else _count_followed(batch["turns"])


def _count_followed(turns: torch.Tensor) -> int:
    return int(((turns[..., 1:] > 0) & (turns[..., 1:] == turns[..., :-1])).sum())


class FeatureRows(Dataset[Batch]):
    """Reply tokens that another one follows, with their hidden states; a batch is read at once."""

    def __init__(self, rows: ReplyRows, rule: TargetRule) -> None:
        assert rows.features is not None
        self._rows, self._rule, self._hidden = rows, rule, rows.features.hidden
        # The last token of a reply has nothing to predict.
        self._index = (rows.reply_ids[:-1] == rows.reply_ids[1:]).nonzero()[:, 0]
        self.num_rows = len(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitems__(self, places: list[int]) -> Batch:
        """Returns the arguments of `HeadsOnFeatures.forward`."""
        index = self._index[torch.tensor(places)]
        targets = self._rule.make_targets(self._rows, index)
        return {
            "hidden": self._hidden[index],
            "root_ids": self._rows.token_ids[index],
            "columns": targets.columns,
            "weights": targets.weights,
            "exists": targets.exists,
        }

    def __getitem__(self, place: int) -> Batch:
        return self.__getitems__([place])


class PaddedConversations(Dataset[Batch]):
    """Conversations, cut to a maximal length; a batch is padded on the right."""

    def __init__(self, conversations: Sequence[LabelledTokens], max_length: int) -> None:
        cut = [(c.token_ids[:max_length], c.turns[:max_length]) for c in conversations]
        self._conversations = [(ids, turns) for ids, turns in cut if bool((turns > 0).any())]
        self.num_rows = sum(_count_followed(turns) for _, turns in self._conversations)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitems__(self, places: list[int]) -> Batch:
        """Returns the arguments of `HeadsOnBackbone.forward`, (B, T) each."""
        chosen = [self._conversations[place] for place in places]
        shape = (len(chosen), max(len(ids) for ids, _ in chosen))
        batch = {
            name: torch.zeros(shape, dtype=torch.int64)
            for name in ("token_ids", "turns", "attention_mask")
        }
        for row, (ids, turns) in enumerate(chosen):
            batch["token_ids"][row, : len(ids)] = ids
            batch["turns"][row, : len(ids)] = turns
            batch["attention_mask"][row, : len(ids)] = 1
        return batch

    def __getitem__(self, place: int) -> Batch:
        return self.__getitems__([place])
