"""Sessions on an engine whose outputs can be predicted."""

import dataclasses

import msgspec
from support.stand_ins.table_engine import TableEngine

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import load_tree

PLAIN = load_tree("plain")


def session_on_table(
    bundle: Bundle,
    *,
    skill: float = 0.7,
    seed: int = 0,
    max_length: int = 200,
    batch_size: int = 1,
    takes_new_trees: bool = False,
) -> tuple[MedusaSession, TableEngine]:
    """Opens a session on a `TableEngine`; returns both."""
    heads = bundle.manifest.require_heads("the table")
    engine = TableEngine(
        capacity=max_length + 64,
        vocab_size=bundle.manifest.model.vocab_size,
        num_heads=heads.num_heads,
        top_k=heads.top_k,
        skill=skill,
        seed=seed,
        batch_size=batch_size,
        takes_new_trees=takes_new_trees,
    )
    return MedusaSession(bundle, engine=engine, max_length=max_length), engine


def with_eos(bundle: Bundle, eos_token_ids: list[int]) -> Bundle:
    """Returns the bundle with other end tokens."""
    model = msgspec.structs.replace(bundle.manifest.model, eos_token_ids=eos_token_ids)
    return dataclasses.replace(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, model=model)
    )
