"""What a prompt may be, and what is refused by name."""

from typing import Any

import numpy as np
import pytest

from medusa_trt.errors import PromptError
from medusa_trt.runtime.text.prompts import ChatPrompt, is_begun, read_prompt, read_prompts

MESSAGE = {"role": "user", "content": "hi"}


def test_texts_token_ids_and_messages_are_told_apart() -> None:
    assert read_prompt("hi") == "hi"
    assert read_prompt((1, 2)) == read_prompt(range(1, 3)) == [1, 2]
    assert read_prompt([MESSAGE]) == ChatPrompt(messages=[MESSAGE])
    assert read_prompt([]) == []


@pytest.mark.parametrize("prompt", [np.array([3, 4]), [np.int64(3), 4]])
def test_token_ids_of_numpy_are_taken(prompt: Any) -> None:
    ids = read_prompt(prompt)
    assert ids == [3, 4] and all(type(token) is int for token in ids)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (5, "the prompt is 5: give text"),
        (None, "the prompt is None"),
        (b"abc", "the prompt is b'abc'"),
        (MESSAGE, "the prompt is {"),
        ({1, 2}, "the prompt is {1, 2}"),
        (iter([1]), "the prompt is <list_iter"),
        (["a"], "the prompt holds 'a'"),
        ([1, MESSAGE], "the prompt holds {"),
        ([MESSAGE, 1], "the prompt holds {"),
        ([True], "the prompt holds True"),
        (np.array([1.5]), "the prompt holds 1.5"),
        (np.array([[1]]), r"the prompt holds \[1\]"),
    ],
)
def test_other_prompts_are_refused_by_name(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompt(prompt)


@pytest.mark.parametrize("prompts", ["abc", b"abc", 5, None])
def test_a_single_prompt_is_no_list_of_prompts(prompts: Any) -> None:
    with pytest.raises(PromptError, match="it must be a sequence of prompts"):
        read_prompts(prompts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": 5}, "messages is 5"),
        ({"messages": "hi"}, "messages is 'hi'"),
        ({"messages": [{}]}, "message 1 has the role None"),
        ({"messages": [MESSAGE, {"role": 5}]}, "message 2 has the role 5"),
        ({"messages": [MESSAGE], "tools": "t"}, "tools is 't'"),
        ({"messages": [MESSAGE], "variables": 5}, "variables is 5"),
    ],
)
def test_a_conversation_of_other_things_is_refused(values: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        ChatPrompt(**values)


def test_a_last_message_of_the_assistant_begins_the_reply() -> None:
    assert is_begun([MESSAGE, {"role": "assistant", "content": "Well"}])
    assert not is_begun([MESSAGE]) and not is_begun("hi") and not is_begun([1, 2])
