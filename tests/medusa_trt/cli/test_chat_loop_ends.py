"""The ends of a chat's replies that are not the model's: Ctrl-C, failures, a full cache."""

import signal

import pytest
from support.terminal.chat_driver import LONG, SHORT, Driver

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_reply_keeps_what_is_there(session: MedusaSession) -> None:
    driver = Driver(session, LONG)
    driver.on_write = lambda: ctrl_c() if len(driver.written) == 3 else None
    assert driver.say("hello") == []
    ((user, partial),) = driver.exchanges
    assert user == "hello" and "".join(driver.written) == partial + "\n"
    whole = session.generate([{"role": "user", "content": "hello"}], LONG)
    assert whole.text.startswith(partial.rstrip("\ufffd")) and len(partial) < len(whole.text)
    driver.on_write = lambda: None
    driver.say("again")
    assert len(driver.exchanges) == 2
    expected = session.generate(driver.chat.conversation.messages()[:-1], LONG)
    assert driver.exchanges[1][1] == expected.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_prompt_is_read_leaves_nothing(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(session)
    driver.say("first")
    before = driver.exchanges

    def interrupted(*_: object, **__: object) -> None:
        ctrl_c()

    for line in ("hello", "/regen"):
        with monkeypatch.context() as patch:
            patch.setattr(session.engine, "verify", interrupted)
            assert driver.say(line) == ["no reply: the conversation stays as it was"]
    assert driver.exchanges == before
    driver.say("hello")
    expected = session.generate(driver.chat.conversation.messages()[:-1], SHORT)
    assert driver.exchanges[1] == ("hello", expected.text)


def test_ctrl_c_late_in_a_reply_does_not_leave(session: MedusaSession) -> None:
    driver = Driver(session)
    driver.on_write = lambda: ctrl_c() if driver.written[-1] == "\n" else None
    driver.say("hello", "again")
    assert len(driver.exchanges) == 2


@pytest.mark.parametrize("fails_first", [True, False])
def test_a_failing_engine_ends_one_reply(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch, fails_first: bool
) -> None:
    driver = Driver(session, LONG)
    verify = session.engine.verify

    def failing(*args: object, **kwargs: object) -> object:
        if fails_first or len(driver.written) >= 3:
            raise EngineError("the engine broke")
        return verify(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(session.engine, "verify", failing)
        assert driver.say("hello") == ["error: the engine broke"]
    assert len(driver.exchanges) == (0 if fails_first else 1)
    if not fails_first:
        assert "".join(driver.written) == driver.exchanges[0][1] + "\n"
    assert driver.say("again") == []


def test_a_full_cache_names_the_ways_out(tiny_bundle: Bundle) -> None:
    endless = GenerationOptions(ignore_eos=True)
    with MedusaSession(tiny_bundle, max_length=60, num_threads=1) as session:
        driver = Driver(session, endless)
        (shown,) = driver.say("hello")
        limit = tiny_bundle.manifest.model.max_length
        for way in ("/reset", "--max-length", "now 60", f"allows {limit}"):
            assert way in shown
        before = driver.exchanges
        assert len(before) == 1
        (shown,) = driver.say("again")
        assert shown.startswith("error: the prompt has ")
        for way in ("/reset", "--max-length", "now 60", f"allows {limit}"):
            assert way in shown
        assert driver.exchanges == before
        driver.say("/reset", "again")
        assert [user for user, _ in driver.exchanges] == ["again"]
