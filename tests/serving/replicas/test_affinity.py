"""Affinity: one key for a conversation, and few keys that move with the replicas."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.serving.replicas.affinity import make_affinity_key, rank_replicas

SYSTEM = {"role": "system", "content": "Be brief."}


def key_of(**fields: Any) -> str:
    return make_affinity_key(json.dumps(fields).encode())


def test_a_conversation_keeps_its_key_while_it_grows() -> None:
    turns = [SYSTEM, {"role": "user", "content": "one"}]
    first = key_of(messages=turns, temperature=0)
    turns += [{"role": "assistant", "content": "1"}, {"role": "user", "content": "two"}]
    assert first == key_of(messages=turns) != ""
    assert first != key_of(messages=[SYSTEM, {"role": "user", "content": "other"}])


def test_a_long_prompt_keeps_its_key_while_it_grows() -> None:
    assert key_of(prompt="a" * 300) == key_of(prompt="a" * 300 + "b") != key_of(prompt="b" * 300)
    ids = list(range(70))
    assert key_of(prompt=ids) == key_of(prompt=[*ids, 5]) != key_of(prompt=ids[1:])


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[1]", b"{}", b'{"messages": []}', b'{"messages": 5}', b'{"prompt": 5}'],
)
def test_a_body_without_a_prompt_has_no_key(body: bytes) -> None:
    assert make_affinity_key(body) == ""


@pytest.mark.parametrize("messages", [[1, {"role": "user"}], [{"role": ["x"]}], ["\ud800"]])
def test_wrong_messages_are_left_to_the_replica(messages: Any) -> None:
    assert key_of(messages=messages) != ""


@given(st.sets(st.text(min_size=1), min_size=2, max_size=8), st.text())
def test_only_the_keys_of_a_lost_replica_move(names: set[str], key: str) -> None:
    ranked = rank_replicas(key, sorted(names))
    assert sorted(ranked) == sorted(names)
    assert rank_replicas(key, sorted(names - {ranked[0]})) == ranked[1:]


def test_keys_spread_over_the_replicas() -> None:
    firsts = [rank_replicas(str(key), ["a", "b", "c"])[0] for key in range(300)]
    assert min(firsts.count(name) for name in "abc") > 60
