"""Choice of a sequence's next tokens from a verified tree: acceptance, sampling, processors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import ProcessorError
from medusa_trt.runtime.decoding.acceptance import AcceptedTree, accept_exact, accept_typical
from medusa_trt.runtime.engines.base import Reductions
from medusa_trt.runtime.options import GREEDY, GenerationOptions, SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits, uniforms_from_seed


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (nats) of the chosen token and of the likeliest tokens.

    They are those of the model: without processors, temperature and filters.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Chooser:
    """Chooses the tokens of one reply, with its processors' states and its random numbers.

    Attributes:
        reads_logits: whether tokens are chosen one by one from full logits on the host.
        needs_reductions: whether tokens are chosen from the engine's reductions.
        reduced_sampling: the distribution that the engine reduces logits to; greedy without
            `needs_reductions`.
        prompt_logprobs: of the prompt's tokens that were read, after the first one, which nothing
            predicts; None if they are not requested.
    """

    def __init__(
        self, options: GenerationOptions, prompt_ids: Sequence[int], num_positions: int
    ) -> None:
        """Starts a reply.

        Args:
            options: acceptance, sampling, processors and logprobs.
            prompt_ids: the prompt, from which processors start.
            num_positions: number of positions that may be sampled, with the depth of a tree.
        """
        self._options = options
        self._processors = [processor.start(prompt_ids) for processor in options.processors]
        is_sampled = options.rule != "greedy"
        self._uniforms = uniforms_from_seed(
            options.sampling.seed, num_positions if is_sampled else 1
        )
        self._prompt_ids = prompt_ids
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if options.prompt_logprobs else None
        self.reads_logits = bool(self._processors) or options.logprobs is not None
        self.needs_reductions = is_sampled and not self.reads_logits
        self.reduced_sampling: SamplingOptions = (
            options.sampling if self.needs_reductions else GREEDY
        )

    def score_prompt(self, past_length: int, logits: NDArray[np.float32]) -> None:
        """Adds the log-probabilities of the prompt's tokens that follow on some of its tokens.

        Args:
            past_length: position of the first of these tokens.
            logits: (num_tokens, vocab) float32, one row for each of them.
        """
        assert self.prompt_logprobs is not None and self._options.logprobs is not None
        following = self._prompt_ids[past_length + 1 : past_length + 1 + len(logits)]
        for row, token in zip(logits, following, strict=False):
            self.prompt_logprobs.append(_compute_logprobs(row, token, self._options.logprobs))

    def take_uniforms(self, tree: AcceptedTree, past_length: int) -> NDArray[np.float64]:
        """Uniform number of the position after each node, (N,)."""
        return self._uniforms[past_length + 1 :].take(tree.position_offsets)

    def accept(
        self,
        tree: AcceptedTree,
        tokens: Sequence[int],
        argmax: Sequence[int],
        reductions: Reductions,
        index: int,
    ) -> tuple[list[int], int]:
        """Accepts a path of the verified tree, if `needs_reductions`.

        Args:
            tree: N nodes.
            tokens: the tokens of the nodes.
            argmax: the most likely next token after each node.
            reductions: reductions of the whole batch.
            index: index of this sequence in the batch.

        Returns:
            The path's nodes and the bonus token.
        """
        options = self._options
        if options.rule != "typical":
            sampled: list[int] = reductions.sampled.tolist()[index]
            nodes = accept_exact(tree, tokens, sampled)
            return nodes, sampled[nodes[-1]]
        assert options.posterior_threshold is not None and options.posterior_alpha is not None
        nodes = accept_typical(
            tree,
            reductions.candidate_logprob.tolist()[index],
            reductions.entropy.tolist()[index],
            posterior_threshold=options.posterior_threshold,
            posterior_alpha=options.posterior_alpha,
        )
        return nodes, argmax[nodes[-1]]

    def walk(
        self,
        tree: AcceptedTree,
        tokens: Sequence[int],
        past_length: int,
        logits: NDArray[np.float32],
    ) -> tuple[list[int], int, tuple[TokenLogprobs, ...]]:
        """Chooses a token after the root, moves to the child with this token, and so on.

        Args:
            tree: N nodes.
            tokens: the tokens of the nodes.
            past_length: position of the root.
            logits: (N, vocab) float32, requested because of `reads_logits`; overwritten.

        Returns:
            The path's nodes, the bonus token, and the log-probabilities of the tokens that the step
            adds, if requested.
        """
        nodes, logprobs = [0], []
        while True:
            row = logits[nodes[-1]]
            model_row = row.copy() if self._options.logprobs is not None else row
            for processor in self._processors:
                processor.process(row)
            if self._processors and np.isneginf(row.max()):
                raise ProcessorError(
                    f"the logits processors forbid every token at position "
                    f"{past_length + len(nodes)}: loosen one of them"
                )
            uniform = float(self._uniforms[(past_length + len(nodes)) % len(self._uniforms)])
            token = token_from_logits(row, self._options.sampling, uniform)
            for processor in self._processors:
                processor.accept(token)
            if self._options.logprobs is not None:
                logprobs.append(_compute_logprobs(model_row, token, self._options.logprobs))
            start, end = tree.child_ranges[nodes[-1]]
            children = tokens[start:end]
            if token not in children:
                return nodes, token, tuple(logprobs)
            nodes.append(start + children.index(token))


def _compute_logprobs(logits: NDArray[np.float32], token: int, num_top: int) -> TokenLogprobs:
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    num_top = min(num_top, len(logprobs))  # a vocabulary may be smaller
    # A full sort of 49,152 values takes 4 ms.
    least = np.partition(logprobs, -num_top)[-num_top] if num_top else np.inf
    likely = np.flatnonzero(logprobs >= least)
    best = likely[np.argsort(-logprobs[likely], kind="stable")][:num_top]
    return TokenLogprobs(
        token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best)
    )
