"""Worker for this project: plain decoding, or Medusa with the bundle's tree."""

from collections.abc import Callable, Iterator, Sequence

from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import load_tree


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
