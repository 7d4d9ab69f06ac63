"""Generation through a bundle's session: faster, and by the model that will be deployed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.errors import EngineError, TrainingError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.training.data.generation import Continuation, select_top_logprobs
from medusa_trt.training.data.shards import Features
from medusa_trt.tree_configs import chain_tree

_MAX_SEED = 2**62


@dataclass(slots=True)
class _Observer:
    """Keeps what the model computed for each token of a continuation."""

    hidden: list[torch.Tensor] = field(default_factory=list)
    best: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __call__(self, hidden: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        self.hidden += torch.from_numpy(hidden).to(torch.float16)
        ids, logprobs = select_top_logprobs(torch.from_numpy(logits))
        self.best += zip(ids, logprobs, strict=True)


class SessionGenerator:
    """Continues texts through a session, `batch_size` at the same time; see `BatchGenerator`."""

    def __init__(
        self,
        session: MedusaSession,
        eos_token_ids: Sequence[int],
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Takes a session that runs nothing else, and the tokens that end a continuation.

        `on_step` is called at each step once all texts of a batch are begun.
        """
        self._session, self._eos_ids, self._on_step = session, tuple(eos_token_ids), on_step

    def continue_texts(
        self,
        texts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        keep_features: bool = False,
    ) -> list[Continuation]:
        """See `BatchGenerator.continue_texts`.

        Raises:
            TrainingError: a text and its continuation do not fit into the session's cache.
            EngineError: the engine failed.
        """
        session, longest = self._session, max(map(len, texts))
        if longest + max_new_tokens > session.max_length:
            raise TrainingError(
                f"a text of {longest} tokens and {max_new_tokens} new ones do not fit the engine's "
                f"cache of {session.max_length} rows: shorten the prompts, or export the bundle "
                "with a larger --max-length"
            )
        # Later texts must not depend on those before them, not even in the last bits.
        session.scheduler.forget()
        observers = [_Observer() for _ in texts]
        places = {}
        for place, text in enumerate(texts):
            options = GenerationOptions(
                max_new_tokens=max_new_tokens,
                ignore_eos=True,
                stop_ids=self._eos_ids,
                tree=chain_tree(0),
                lookup_ngram=0,
                sampling=SamplingOptions(
                    temperature=temperature, seed=int(torch.randint(_MAX_SEED, ()))
                ),
            )
            request = session.make_request(text, options, streamed=False)
            if keep_features:
                request.state.observer = observers[place]
            places[session.scheduler.add(request)] = place
        done: dict[int, Continuation] = {}
        while len(done) < len(texts):
            for number, event, error in session.scheduler.step():
                if error is not None or event.generation is None:
                    raise EngineError(str(error)) from error
                token_ids, observer = event.generation.token_ids, observers[places[number]]
                features = None
                if keep_features:
                    features = Features.from_tokens(observer.hidden, observer.best)
                is_ended = token_ids[-1] in self._eos_ids
                done[places[number]] = Continuation(token_ids, is_ended, features)
            if not session.scheduler.num_waiting:
                self._on_step()
        return [done[place] for place in range(len(texts))]
