"""Worker for this project: plain decoding, or Medusa with the bundle's tree."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.scheduler import Request
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree


def load(
    bundle: str, tree: str | None, threads: int
) -> tuple[list[str], Callable[[Sequence[int], int], Iterator[list[int]]]]:
    """Opens the bundle with a tree; None for the tree in the bundle. See `loop.py`."""
    session = MedusaSession(bundle, num_threads=threads)
    draft_tree = None if tree is None else load_tree(tree)

    def start(prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        options = GenerationOptions(max_new_tokens=max_new_tokens, ignore_eos=True, tree=draft_tree)
        return (event.token_ids for event in session.stream(prompt_ids, options))

    return ["medusa-trt", "onnxruntime", "numpy"], start


def load_many(
    bundle: str, tree: str | None, threads: int, concurrency: int
) -> tuple[list[str], Callable[[Sequence[Sequence[int]], int], Iterator[dict[int, list[int]]]]]:
    """Opens the bundle for several requests in one batch, which join and leave at any step."""
    session = MedusaSession(bundle, num_threads=threads, batch_size=concurrency)
    draft_tree = None if tree is None else load_tree(tree)

    def start(
        prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Iterator[dict[int, list[int]]]:
        options = GenerationOptions(max_new_tokens=max_new_tokens, ignore_eos=True, tree=draft_tree)
        requests = [session.make_request(prompt, options) for prompt in prompts]
        session.scheduler.forget()  # Rows of earlier prompts would be used again.
        return run_requests(session, requests)

    return ["medusa-trt", "onnxruntime", "numpy"], start


def run_requests(
    session: MedusaSession, requests: Sequence[Request]
) -> Iterator[dict[int, list[int]]]:
    """Runs all requests; yields the new tokens of each step by the request's index."""
    scheduler = session.scheduler
    indices = {scheduler.add(request): index for index, request in enumerate(requests)}
    while not scheduler.is_idle:
        events = scheduler.step()
        if error := next((event.error for event in events if event.error is not None), None):
            raise error
        yield {indices[event.request_id]: event.event.token_ids for event in events}


def load_rows(
    model: str, threads: int, pasts: Sequence[int]
) -> tuple[list[str], Callable[[int, int, bool], Callable[[], object]]]:
    """Opens a bundle's engine, see `loop.py`. A step of no rows is one call of the heads."""
    bundle = Bundle.open(model)
    chunk = bundle.manifest.target.prefill_chunk
    capacity = max(pasts) + chunk
    engine = OrtEngine(bundle, capacity=capacity, num_threads=threads)
    rng = np.random.default_rng(0)
    engine.cache.fill(rng.normal(0, 0.1, (1, 1, 1, 1, capacity, 1)).astype(np.float32))
    hidden = np.ones((1, bundle.manifest.model.hidden_size), np.float32)
    trees: dict[int, MedusaTree] = {}  # The engine keeps buffers for each tree object.

    def prepare(rows: int, past: int, is_prefill: bool) -> Callable[[], object]:
        if rows == 0:
            return lambda: engine.draft(hidden, [0])
        step = min(rows, chunk) if is_prefill else rows
        tree = trees.setdefault(step, chain_tree(step - 1))
        ids = np.arange(step)[None]

        def read_prompt() -> None:
            for start in range(past, past + rows, step):
                engine.verify(ids, tree, [start], rows=[step - 1])

        return read_prompt if is_prefill else lambda: engine.verify(ids, tree, [past])

    return ["medusa-trt", "onnxruntime"], prepare
