"""The report's section on the heads' accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_trt.calibration.options import ReplySettings
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.trees.head_accuracy import (
    compare_with_independence,
    compute_top_k_accuracies,
    count_samples,
)
from medusa_trt.calibration.trees.head_ranks import RankRecord, table_from_records
from medusa_trt.calibration.trees.replay import mean_accept_length, replay
from medusa_trt.runtime.bundle import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSection:
    """Accuracy of the heads.

    Attributes:
        origin: see `Origin`.
        settings: how the replies were generated.
        num_prompts: number of prompts that the user wanted; None for the default.
        num_replies: number of recorded replies.
        num_tokens: number of their tokens.
        counts: samples of each head.
        top_k_accuracies: (num_heads, top_k) share of true tokens among the first k candidates.
        joint: for each depth, the share of positions where the first candidates of all heads down
            to it are right.
        independent: the same share, if the heads were right independently of each other.
        tree: name of the bundle's tree.
        accept_length: tokens per step that this tree adds, by replay.
    """

    origin: Origin
    settings: ReplySettings
    num_prompts: int | None
    num_replies: int
    num_tokens: int
    counts: list[int]
    top_k_accuracies: list[list[float]]
    joint: list[float]
    independent: list[float]
    tree: str
    accept_length: float

    @classmethod
    def from_records(
        cls,
        bundle: Bundle,
        records: Sequence[RankRecord],
        settings: ReplySettings,
        num_prompts: int | None,
        origin: Origin,
    ) -> "HeadsSection":
        """Summarizes replies that were recorded with these settings; at least one of them."""
        heads = bundle.manifest.require_heads("calibrate heads")
        table = table_from_records(records, heads.num_heads)
        joint, independent = compare_with_independence(table.ranks)
        return cls(
            origin=origin,
            settings=settings,
            num_prompts=num_prompts,
            num_replies=len(records),
            num_tokens=sum(len(record.token_ids) for record in records),
            counts=count_samples(table.ranks).tolist(),
            top_k_accuracies=compute_top_k_accuracies(table.ranks, heads.top_k).tolist(),
            joint=joint,
            independent=independent,
            tree=bundle.tree.name,
            accept_length=mean_accept_length(table, replay(bundle.tree, table)),
        )
