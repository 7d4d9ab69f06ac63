"""The state of one sequence between two steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.decoding.choosing import Chooser
from medusa_trt.runtime.decoding.drafting import TokenLookup
from medusa_trt.runtime.decoding.tracing import VerifiedStep
from medusa_trt.tree_configs import MedusaTree

Observer = Callable[[NDArray[np.float32], NDArray[np.float32]], None]

_MEMORY = 0.97
"""Factor by which older drafts count less at each step."""


@dataclass(slots=True)
class DraftRecord:
    """How good the drafts of one sequence were so far; begins with plausible counts.

    Attributes:
        copies_right: copies whose first token was right.
        copies_tried: copies that were compared.
        later_right: right tokens of these copies after the first one.
        later_tried: those that were compared: up to the first wrong one of each copy.
        accepted: drafts of grown trees that were accepted.
        expected: number of accepted drafts that the heads' probabilities had predicted.
    """

    copies_right: float = 3.0
    copies_tried: float = 4.0
    later_right: float = 7.0
    later_tried: float = 8.0
    accepted: float = 8.0
    expected: float = 8.0

    @property
    def copied_share(self) -> float:
        """Probability that the first token of a copy is right."""
        return self.copies_right / self.copies_tried

    @property
    def later_share(self) -> float:
        """Probability that a later token of a copy is right, if those before it were."""
        return self.later_right / self.later_tried

    @property
    def trust(self) -> float:
        """Accepted drafts over the expected ones."""
        return self.accepted / self.expected

    def add_copied(self, copied: Sequence[int], added: Sequence[int]) -> None:
        """Compares copied tokens with those that a step added."""
        right = 0
        for copied_token, token in zip(copied, added, strict=False):
            if copied_token != token:
                break
            right += 1
        tried = right + (right < min(len(copied), len(added)))
        self.copies_right = _MEMORY * self.copies_right + (right > 0)
        self.copies_tried = _MEMORY * self.copies_tried + 1
        self.later_right = _MEMORY * self.later_right + max(0, right - 1)
        self.later_tried = _MEMORY * self.later_tried + max(0, tried - 1)

    def add_grown(self, accepted: int, expected: float) -> None:
        """Counts the drafts of a grown tree."""
        self.accepted = _MEMORY * self.accepted + accepted
        self.expected = _MEMORY * self.expected + expected


@dataclass(slots=True)
class SequenceState:
    """The state from which the next step of one sequence starts.

    Attributes:
        slot: the engine's slot with the cache rows of the sequence.
        chooser: chooses the tokens, with the acceptance rule and the random numbers.
        tree: the draft tree; None to grow a new one at each step.
        lookup: the tokens so far, if drafts may be copied from them.
        past_length: number of valid rows in the slot.
        root_token: the token chosen last, which is not yet in the cache.
        hidden: (1, hidden_size) the hidden state that the heads draft from; None before the last
            part of the prompt was read.
        record: how good the drafts were.
        observer: called after each step with what the model computed for the tokens that it added,
            hidden (n, hidden_size) and logits (n, vocab), before sampling and processors.
        is_traced: whether each step is to be described.
        last_step: describes the last step after the prompt, if `is_traced`.
    """

    slot: int
    chooser: Chooser
    tree: MedusaTree | None = None
    lookup: TokenLookup | None = None
    past_length: int = 0
    root_token: int = -1
    hidden: NDArray[np.float32] | None = None
    record: DraftRecord = field(default_factory=DraftRecord)
    observer: Observer | None = None
    is_traced: bool = False
    last_step: VerifiedStep | None = None

    @property
    def reads_logits(self) -> bool:
        """Whether a step must return this sequence's logits to the host."""
        return self.chooser.reads_logits or self.observer is not None
