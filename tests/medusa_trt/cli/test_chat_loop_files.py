"""The chat's conversation and its file: read as it was written, or refused in one line."""

import dataclasses
from pathlib import Path

import pytest
from support.terminal.chat_driver import SAMPLED, SHORT, Driver

from medusa_trt.runtime.conversation import Conversation, SavedConversation
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import load_tree

GOOD_OPTIONS = (
    '{"temperature":0,"top_k":0,"top_p":1,"min_p":0,'
    '"seed":null,"acceptance":null,"max_new_tokens":null}'
)


def file_text(messages: str = "[]", *, options: str = GOOD_OPTIONS, version: int = 1) -> str:
    return f'{{"format_version":{version},"model":"m","options":{options},"messages":{messages}}}'


DAMAGED = {
    "empty": b"",
    "cut": file_text().encode()[:-5],
    "no-json": b"hello",
    "no-object": b"[]",
    "bad-utf-8": file_text('[{"role":"user","content":"\0"}]').encode().replace(b"\0", b"\xff"),
    "half-surrogate": file_text('[{"role":"system","content":"\\ud800"}]').encode(),
    "other-version": file_text(version=2).encode(),
    "unknown-field": file_text().replace('"model"', '"extra":1,"model"').encode(),
    "no-model": file_text().replace('"model":"m",', "").encode(),
    "unknown-role": file_text('[{"role":"tool","content":"a"}]').encode(),
    "no-text": file_text('[{"role":"system","content":3}]').encode(),
    "no-reply": file_text('[{"role":"user","content":"a"}]').encode(),
    "reply-first": file_text('[{"role":"assistant","content":"a"}]').encode(),
    "late-system": file_text(
        '[{"role":"user","content":"a"},{"role":"system","content":"b"}]'
    ).encode(),
    "bad-temperature": file_text(
        options=GOOD_OPTIONS.replace('"temperature":0', '"temperature":-1')
    ).encode(),
    "bad-acceptance": file_text(
        options=GOOD_OPTIONS.replace('"acceptance":null', '"acceptance":"luck"')
    ).encode(),
    "greedy-and-warm": file_text(
        options=GOOD_OPTIONS.replace('"acceptance":null', '"acceptance":"greedy"').replace(
            '"temperature":0', '"temperature":1'
        )
    ).encode(),
}


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hand.json"
    path.write_text(file_text('[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]'))
    conversation = Conversation()
    conversation.add("a", "b")
    options = GenerationOptions(max_new_tokens=None)
    assert SavedConversation.load(path) == SavedConversation("m", options, conversation)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_one_line_and_changes_nothing(
    session: MedusaSession, tmp_path: Path, content: bytes
) -> None:
    driver = Driver(session)
    driver.say("hello")
    before = driver.exchanges
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    (shown,) = driver.say(f"/load {path}")
    assert shown.startswith(f"error: {path} is damaged or no saved conversation (")
    assert "\n" not in shown
    assert driver.exchanges == before


def test_what_cannot_be_read_or_written_is_named(session: MedusaSession, tmp_path: Path) -> None:
    driver = Driver(session)
    shown = driver.say(
        f"/load {tmp_path / 'none'}",
        f"/load {tmp_path}",
        f"/save {tmp_path / 'none' / 'file'}",
        f"/save {tmp_path}",
        "/save a\0b",
    )
    assert shown == [
        f"error: cannot read {tmp_path / 'none'}: No such file or directory",
        f"error: cannot read {tmp_path}: Is a directory",
        f"error: cannot write {tmp_path / 'none' / 'file'}: No such file or directory",
        f"error: cannot write {tmp_path}: Is a directory",
        "error: a file's name cannot hold a null character: choose another",
    ]
    (shown_last,) = driver.say("/save .")
    assert shown_last.startswith("error: cannot write .: ")
    assert driver.chat.num_errors == 6
    assert not list(tmp_path.parent.glob(".*partial*")) and not list(Path().glob(".*partial*"))


def test_save_and_load_go_on_where_it_was(session: MedusaSession, tmp_path: Path) -> None:
    path = tmp_path / "with a space.json"
    path.write_text("an older file")
    driver = Driver(session, SAMPLED, system="be brief")
    driver.say("hello", f"/save {path}")
    assert driver.shown == [f"wrote {path} (1 exchange)"]
    driver.say("again")
    other = Driver(session, dataclasses.replace(SHORT, tree=load_tree("plain")))
    (shown,) = other.say("lost", f"/load {path}")
    assert shown == (
        f"read {path} (1 exchange, temperature 1, seed 7, acceptance sample, "
        "at most 12 tokens per reply)"
    )
    assert other.chat.options.tree == load_tree("plain")
    assert other.chat.options.sampling == SAMPLED.sampling
    options = dataclasses.replace(SAMPLED, ignore_eos=False, tree=None)
    assert dataclasses.replace(other.chat.options, tree=None) == options
    other.chat.options = SAMPLED
    other.say("again")
    assert other.chat.conversation == driver.chat.conversation
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_conversation_of_another_model_is_named(session: MedusaSession, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    SavedConversation("vicuna", GenerationOptions(), Conversation()).save(path)
    (shown,) = Driver(session).say(f"/load {path}")
    name = session.bundle.manifest.model.name
    assert shown.endswith(f"; vicuna wrote it, {name} goes on")
