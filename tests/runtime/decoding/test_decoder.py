"""Reading prompts and steps on an engine whose outputs can be predicted."""

import pytest
from support.stand_ins.table_engine import TableEngine

from medusa_trt.errors import ProcessorError
from medusa_trt.runtime.decoding.choosing import Chooser
from medusa_trt.runtime.decoding.decoder import Decoder
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.processors.restrictions import BannedTokens
from medusa_trt.tree_configs import load_tree

VOCAB = 40
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def make(batch_size: int = 1) -> tuple[Decoder, TableEngine]:
    engine = TableEngine(
        capacity=200,
        vocab_size=VOCAB,
        num_heads=3,
        top_k=4,
        skill=0.7,
        seed=0,
        batch_size=batch_size,
    )
    return Decoder(engine, num_heads=3, top_k=4, min_rows=2), engine


def begin(decoder: Decoder, slot: int, tree: str, *, part: int, options: GenerationOptions) -> int:
    """Reads the prompt in parts; returns the first token of the reply."""
    state = SequenceState(slot=slot, chooser=Chooser(options, PROMPT, 200), tree=load_tree(tree))
    decoder_states.append(state)
    for start in range(0, len(PROMPT), part):
        ids = PROMPT[start : start + part]
        added = decoder.read(state, ids, is_last=start + len(ids) == len(PROMPT))
    assert added is not None and state.past_length == len(PROMPT)
    return added[0][0]


decoder_states: list[SequenceState] = []


@pytest.fixture(autouse=True)
def forget_states() -> None:
    decoder_states.clear()


@pytest.mark.parametrize("part", [1, 3, 8])
@pytest.mark.parametrize("tree", ["plain", "chain-3", "cartesian-2x2"])
def test_steps_add_the_models_greedy_text(tree: str, part: int) -> None:
    decoder, engine = make()
    text = [*PROMPT, begin(decoder, 0, tree, part=part, options=GenerationOptions())]
    while len(text) < 40:
        (added,) = decoder.step(decoder_states)
        assert isinstance(added, tuple)
        text += added[0]
    for length in range(len(PROMPT), len(text)):
        assert text[length] == engine.next_token(text[:length])


def test_neighbours_with_other_trees_are_separate_steps() -> None:
    decoder, engine = make(batch_size=3)
    for slot, tree in enumerate(("chain-2", "chain-2", "plain")):
        begin(decoder, slot, tree, part=8, options=GenerationOptions())
    before = engine.num_steps
    assert len(decoder.step(decoder_states)) == 3
    assert engine.num_steps == before + 2
    assert (decoder.num_sequence_steps, decoder.num_rows) == (3, 3 + 3 + 1)


def test_an_error_of_one_sequence_leaves_the_others() -> None:
    decoder, engine = make(batch_size=2)
    every = BannedTokens(token_ids=range(VOCAB))
    begin(decoder, 0, "plain", part=8, options=GenerationOptions())
    with pytest.raises(ProcessorError, match="forbid every token"):
        begin(decoder, 1, "plain", part=8, options=GenerationOptions(processors=(every,)))
    good, bad = decoder.step(decoder_states)
    assert isinstance(bad, ProcessorError) and isinstance(good, tuple)
    assert engine.num_sequence_steps == 4
