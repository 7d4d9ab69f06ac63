"""The contract of logits processors, and the checks that they share.

A processor is a description that serves any number of replies; `start` makes the state of one
reply. For every position of the reply in order, the decode loop lets each processor change the
logits, chooses a token and reports it to all of them. It follows the accepted path only, so states
never roll back. No processor takes time or memory in proportion to the vocabulary, except grammars
and `ForcedTokens`, which write the whole row.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import ProcessorError, PromptError


class RunningProcessor(Protocol):
    """The state of one reply."""

    def process(self, logits: NDArray[np.float32]) -> None:
        """Changes the next position's logits in place; -inf forbids a token.

        Args:
            logits: (vocab,) float32.

        Raises:
            ProcessorError: the processor names a token beyond the vocabulary, or cannot go on.
        """
        ...

    def accept(self, token: int) -> None:
        """Records the token that was chosen at the position processed last.

        Raises:
            ProcessorError: this processor forbids the token.
        """
        ...


class LogitsProcessor(Protocol):
    """An immutable description, shared by any number of replies."""

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """Makes the state before the first token of a reply to this prompt."""
        ...


def check_vocabulary(largest_id: int, logits: NDArray[np.float32]) -> None:
    """Checks that a token id has a logit.

    Args:
        largest_id: the largest id that a processor names; -1 if it names none.
        logits: (vocab,) float32.

    Raises:
        ProcessorError: the id is beyond the vocabulary.
    """
    if largest_id >= len(logits):
        raise ProcessorError(
            f"a logits processor names token {largest_id}, the model's tokens end at "
            f"{len(logits) - 1}: use token ids of this model"
        )


def check_token_ids(name: str, token_ids: Iterable[int]) -> tuple[int, ...]:
    """Returns token ids as Python integers.

    Raises:
        PromptError: one is negative or not a whole number; the message calls the list `name`.
    """
    checked = tuple(token_ids)
    for token in checked:
        if not isinstance(token, (int, np.integer)) or token < 0:
            raise PromptError(f"{name} holds {token!r}: token ids are whole numbers from 0")
    return tuple(int(token) for token in checked)
