"""Conversations: their messages, and a file that is read as it was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.errors import PromptError
from medusa_trt.runtime.conversation import Conversation, SavedConversation
from medusa_trt.runtime.options import AcceptanceName, GenerationOptions, SamplingOptions

no_surrogates = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    system=st.none() | no_surrogates,
    exchanges=st.lists(st.tuples(no_surrogates, no_surrogates), max_size=4),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 1000),
    seed=st.none() | st.integers(0, 2**64 - 1),
    acceptance=st.sampled_from([None, "sample", "typical"]),
    max_new_tokens=st.none() | st.integers(1, 99),
)
def test_a_saved_conversation_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    system: str | None,
    exchanges: list[tuple[str, str]],
    temperature: float,
    top_k: int,
    seed: int | None,
    acceptance: AcceptanceName | None,
    max_new_tokens: int | None,
) -> None:
    conversation = Conversation(system)
    for user, assistant in exchanges:
        conversation.add(user, assistant)
    options = GenerationOptions(
        max_new_tokens=max_new_tokens,
        acceptance=acceptance,
        sampling=SamplingOptions(
            temperature=temperature, top_k=top_k, top_p=0.5, min_p=0.1, seed=seed
        ),
    )
    saved = SavedConversation("tiny", options, conversation)
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    saved.save(path)
    assert SavedConversation.load(path) == saved


def test_messages_have_the_roles_of_chat_templates() -> None:
    conversation = Conversation("be brief")
    conversation.add("a", "b")
    assert [(m["role"], m["content"]) for m in conversation.messages("c")] == [
        ("system", "be brief"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert conversation.make_messages_of_last() == conversation.messages()[:-1]
    conversation.replace_last("d")
    assert conversation.messages()[-1] == {"role": "assistant", "content": "d"}


def test_an_empty_conversation_has_no_last_reply() -> None:
    with pytest.raises(PromptError, match="say something first"):
        Conversation().make_messages_of_last()
