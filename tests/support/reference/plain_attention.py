"""A form of attention in plain torch, and a step of a model with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.export.modeling.attention_inputs import AttentionCall, AttentionMask
from medusa_trt.export.modeling.grouped_attention import grouped_attention
from medusa_trt.export.modeling.rotary import rotate
from medusa_trt.tree_configs import MedusaTree


class PlainAttention(AttentionForm):
    """Joins the cached rows and the nodes, and attends."""

    takes_batch = False
    has_position_per_row = True

    def _make_mask(self) -> AttentionMask:
        past = torch.arange(int(self._inputs.past_length))
        seen = torch.zeros(len(self._inputs.tree_mask), len(past))
        return AttentionMask(
            torch.cat([seen, self._inputs.tree_mask], 1)[None, None],
            self._position_ids,
            torch.cat([past[None], self._position_ids], 1),
            self._inputs.max_length,
        )

    def _attend(self, call: AttentionCall) -> torch.Tensor:
        cos, sin = (table[self._position_ids][:, None] for table in self._inputs.tables[call.layer])
        query, key = rotate(call.query, cos, sin), rotate(call.key, cos, sin)
        num_past = int(self._inputs.past_length)
        keys, values = (
            torch.cat([past[:, :, :num_past], new], 2)
            for past, new in zip(self._get_cache(call.layer), (key, call.value), strict=True)
        )
        self.presents += [keys, values]
        bias = self.mask.within(call.window, call.chunk)
        attended = grouped_attention(
            query, keys, values, bias, call.scaling, softcap=call.softcap, sinks=call.sinks
        )
        return attended.transpose(1, 2)


@dataclass(frozen=True)
class PlainStep:
    """Outputs of a step, and the cache for the next one."""

    argmax: NDArray[np.int64]
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32]
    cache: list[torch.Tensor]


def run_plain_step(
    module: VerifyModule,
    tokens: NDArray[np.int64],
    tree: MedusaTree,
    past_length: int = 0,
    cache: Sequence[torch.Tensor] | None = None,
    rows: Sequence[int] | None = None,
) -> PlainStep:
    """Runs a module with `PlainAttention` on the nodes of a tree; all rows by default."""
    with torch.no_grad(), module.attach():
        argmax, hidden, logits, *presents = module(
            torch.from_numpy(tokens)[None],
            torch.from_numpy(tree.additive_mask.copy()),
            torch.from_numpy(tree.position_offsets.copy()),
            torch.tensor([past_length]),
            torch.tensor(range(tree.num_nodes) if rows is None else rows),
            *(module.make_example_inputs()[5:] if cache is None else cache),
        )
    return PlainStep(argmax.numpy(), hidden.numpy(), logits.numpy(), presents)
