"""The chat: its entries, replies and commands, without a terminal."""

from functools import partial

import pytest
from support.terminal.chat_driver import SAMPLED, SHORT, Driver

from medusa_trt.cli.chat_loop import CONTINUATION, PROMPT, Chat, Console, Entry, read_entry
from medusa_trt.errors import PromptError, TreeError
from medusa_trt.runtime.conversation import Conversation
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import ChatPrompt, Message
from medusa_trt.tree_configs import load_tree


@pytest.mark.parametrize(
    ("lines", "entry"),
    [
        (["hello"], Entry("hello")),
        (["a\\", "b\\", "c"], Entry("a\nb\nc")),
        (["a\\", ""], Entry("a\n")),
        (["a\\ "], Entry("a\\ ")),
        (['"""', "a", "", " b", '"""'], Entry("a\n\n b", True)),
        (['"""a', 'b""" '], Entry("a\nb", True)),
        (['"""/help"""'], Entry("/help", True)),
        (['  """a\\', 'b"""'], Entry("a\\\nb", True)),
        (['""""""'], Entry("", True)),
        (["pasted\nlines"], Entry("pasted\nlines")),
        (['"""pasted\nlines"""'], Entry("pasted\nlines", True)),
        (['say """x"""'], Entry('say """x"""')),
    ],
)
def test_an_entry_may_have_many_lines(lines: list[str], entry: Entry) -> None:
    prompts = []

    def read_line(prompt: str) -> str:
        prompts.append(prompt)
        return lines.pop(0)

    assert read_entry(read_line) == entry
    assert not lines
    assert prompts == [PROMPT] + [CONTINUATION] * (len(prompts) - 1)


def test_ctrl_c_in_a_later_line_drops_the_entry_only(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.say('"""', "lost", KeyboardInterrupt, "lost too\\", KeyboardInterrupt, "kept")
    assert [user for user, _ in driver.exchanges] == ["kept"]


@pytest.mark.parametrize("lines", [['"""', "half"], ["half\\"]])
def test_input_that_ends_inside_an_entry_is_an_error(
    session: MedusaSession, lines: list[str]
) -> None:
    driver = Driver(session)
    (shown,) = driver.say(*lines)
    assert shown.startswith("error: the input ends before ")
    assert driver.exchanges == [] and driver.chat.num_errors == 1


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/quit"])
def test_the_prompt_is_left(session: MedusaSession, end: str | type[BaseException]) -> None:
    driver = Driver(session)
    driver.say(end, "not read")
    assert driver.lines == ["not read"] and driver.shown == [] and driver.written == []


def test_replies_are_streamed_and_nothing_else_is_shown(session: MedusaSession) -> None:
    driver = Driver(session)
    shown = driver.say("hello", "", "   ", "again")
    assert shown == []
    (_, first), (_, second) = driver.exchanges
    assert "".join(driver.written) == f"{first}\n{second}\n"
    assert first == session.generate([{"role": "user", "content": "hello"}], SHORT).text


def test_a_later_turn_prefills_only_what_is_new(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.say("hello")
    first = len(session.encode(driver.chat.conversation.messages()[:1]))
    shown = driver.say("again", "/stats")
    conversation, _, reply, prompt = shown[0].splitlines()
    assert conversation.startswith("conversation: 2 exchanges, ")
    assert reply.startswith("last reply: ") and "tokens/s" in reply
    cached = int(driver.details[-1].split(", ")[-1].split()[0])
    assert cached >= first > 0
    assert f"{cached} of them cached" in prompt


def test_a_reply_is_gone_on_with(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.say("hello", "/continue")
    messages: list[Message] = [{"role": "user", "content": "hello"}]
    first = session.generate(messages, SHORT).text
    second = session.generate([*messages, {"role": "assistant", "content": first}], SHORT).text
    assert driver.exchanges == [("hello", first + second)] and second
    (error,) = Driver(session).say("/continue")
    assert "there is no reply yet" in error


def test_tools_and_variables_reach_the_template(session: MedusaSession) -> None:
    silent = Console(lambda _: "", lambda _: None, lambda _: None)
    seen: list[ChatPrompt] = []

    def encode(prompt: ChatPrompt) -> list[int]:
        seen.append(prompt)
        return [1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.text, "encode_chat", encode)
        make_prompt = partial(ChatPrompt, tools=[{"name": "f"}], variables={"x": 1})
        chat = Chat(session, Conversation(), SHORT, silent, make_prompt)
        chat.answer(Entry("hello"))
    messages = [{"role": "user", "content": "hello"}]
    prompt = ChatPrompt(messages=messages, tools=[{"name": "f"}], variables={"x": 1})
    assert seen == [prompt, prompt]


def test_stats_before_a_reply(session: MedusaSession) -> None:
    (shown,) = Driver(session, SAMPLED).say("/stats")
    assert shown.splitlines() == [
        f"conversation: 0 exchanges, 0 of {session.max_length} tokens",
        "sampling: temperature 1, seed 7, acceptance sample, at most 12 tokens per reply",
    ]


def test_help_names_every_command(session: MedusaSession) -> None:
    (shown,) = Driver(session).say("/help")
    for name in ("help", "reset", "regen", "save FILE", "load FILE", "stats", "system", "quit"):
        assert f"/{name}" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "/foo bar",
            'there is no command /foo: /help lists the commands, and """/foo ...""" sends it',
        ),
        ("/", 'there is no command /: /help lists the commands, and """/ ...""" sends it'),
        ("/save", "usage: /save FILE"),
        ("/load  ", "usage: /load FILE"),
        ("/system", "usage: /system TEXT"),
        ("/reset now", "usage: /reset"),
        ("/regen", "there is no reply yet: say something first"),
    ],
)
def test_wrong_usage_is_said_clearly(session: MedusaSession, line: str, message: str) -> None:
    driver = Driver(session)
    assert driver.say(line) == [f"error: {message}"]
    assert driver.exchanges == [] and driver.written == []


def test_quoted_text_may_begin_with_a_slash(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.say('"""/usr is a folder"""')
    assert driver.exchanges[0][0] == "/usr is a folder"


def test_reset_keeps_the_system_message(session: MedusaSession) -> None:
    driver = Driver(session, system="be brief")
    driver.say("hello", "/reset")
    assert driver.chat.conversation == Conversation("be brief")


def test_system_is_set_and_removed(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.say("hello", "/system be\\", "brief")
    assert driver.chat.conversation.messages()[0] == {"role": "system", "content": "be\nbrief"}
    assert len(driver.exchanges) == 1
    driver.say("/system -")
    assert driver.chat.conversation.system is None


def test_a_template_that_refuses_system_messages_says_so(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    text = TextCodec(session.bundle)
    monkeypatch.setattr(text, "_chat_template", template + "x")
    monkeypatch.setattr(session, "text", text)
    driver = Driver(session)
    (shown,) = driver.say("/system be brief")
    assert shown == "error: the chat template refuses this conversation: no system"
    assert driver.chat.conversation.system is None
    with pytest.raises(PromptError, match="no system"):
        Driver(session, system="be brief")


def test_regen_replaces_the_last_reply_with_another_seed(session: MedusaSession) -> None:
    driver = Driver(session, SAMPLED)
    driver.say("hello", "again")
    first, replaced = driver.exchanges
    assert driver.say("/regen") == []
    assert driver.exchanges[0] == first
    assert driver.exchanges[1][0] == "again" and driver.exchanges[1][1] != replaced[1]
    assert driver.chat.options.sampling.seed == 8
    fresh = Driver(session, SAMPLED)
    fresh.say("hello", "again", "/regen")
    assert fresh.exchanges == driver.exchanges


def test_regen_without_sampling_says_that_nothing_can_change(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.say("hello")
    before = driver.exchanges
    (shown,) = driver.say("/regen")
    assert driver.exchanges == before
    assert "--temperature" in shown


def test_a_chat_that_cannot_work_does_not_start(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TreeError):
        Driver(session, GenerationOptions(tree=load_tree("chain-9")))
    monkeypatch.setattr(TextCodec, "has_chat_template", property(lambda _: False))
    with pytest.raises(PromptError, match="no chat template, so its model cannot chat"):
        Driver(session)
