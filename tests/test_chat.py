"""The chat: its conversation and file, its loop without a terminal, and the verb itself."""

import argparse
import dataclasses
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.chat import CONTINUATION, PROMPT, Chat, Console, Entry, read_entry
from medusa_trt.cli_chat import add_arguments, sigterm_leaves
from medusa_trt.cli_sampling import sampling_from_arguments
from medusa_trt.errors import EngineError, PromptError, TreeError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.conversation import Conversation, SavedConversation
from medusa_trt.runtime.options import AcceptanceName, GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text import TextCodec
from medusa_trt.tree_configs import load_tree

SHORT = GenerationOptions(max_new_tokens=12)
LONG = GenerationOptions(max_new_tokens=100, ignore_eos=True)
SAMPLED = GenerationOptions(
    max_new_tokens=12, sampling=SamplingOptions(temperature=1.0, seed=7), ignore_eos=True
)

MAIN = """
import argparse, sys
from medusa_trt import cli, cli_chat
parser = argparse.ArgumentParser()
cli_chat.add_arguments(parser)
parser.set_defaults(run=cli_chat.run)
sys.exit(cli._run(parser.parse_args()))
"""


class Driver:
    """A chat whose lines a test gives, and what it showed."""

    def __init__(
        self, session: MedusaSession, options: GenerationOptions = SHORT, system: str | None = None
    ) -> None:
        self.lines: list[str | type[BaseException]] = []
        self.prompts: list[str] = []
        self.written: list[str] = []
        self.shown: list[str] = []
        self.details: list[str] = []
        self.on_write: Callable[[], None] = lambda: None
        self.session = session
        console = Console(self._read, self._write, self.shown.append, self.details.append)
        self.chat = Chat(session, Conversation(system), options, console)

    def say(self, *lines: str | type[BaseException]) -> list[str]:
        """Runs the loop over these lines; returns what it showed beside the replies."""
        self.lines[:] = lines
        self.shown.clear()
        self.written.clear()
        self.chat.run()
        return self.shown

    @property
    def exchanges(self) -> list[tuple[str, str]]:
        return [(e.user, e.assistant) for e in self.chat.conversation.exchanges]

    def _read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def _write(self, text: str) -> None:
        self.written.append(text)
        self.on_write()


@pytest.fixture(scope="module")
def session(tiny_bundle: Bundle) -> Iterator[MedusaSession]:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        yield session


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


# Conversation and file

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
    assert conversation.messages_of_last() == conversation.messages()[:-1]
    conversation.replace_last("d")
    assert conversation.messages()[-1] == {"role": "assistant", "content": "d"}


def test_an_empty_conversation_has_no_last_reply() -> None:
    with pytest.raises(PromptError, match="say something first"):
        Conversation().messages_of_last()


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
    assert SavedConversation.load(path) == SavedConversation("m", GenerationOptions(), conversation)


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
    assert not list(tmp_path.parent.glob(".*.tmp")) and not list(Path().glob(".*.tmp"))


# Entries


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


# Replies and commands


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


def test_stats_before_a_reply(session: MedusaSession) -> None:
    (shown,) = Driver(session, SAMPLED).say("/stats")
    assert shown.splitlines() == [
        f"conversation: 0 exchanges, 0 of {session.max_length} tokens",
        "sampling: temperature 1, seed 7, acceptance sample, at most 12 tokens a reply",
    ]


def test_help_names_every_command(session: MedusaSession) -> None:
    (shown,) = Driver(session).say("/help")
    for name in ("help", "reset", "regen", "save FILE", "load FILE", "stats", "system", "quit"):
        assert f"/{name}" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/foo bar", '/foo is no command: /help lists them, and """/foo ...""" says it'),
        ("/", '/ is no command: /help lists them, and """/ ...""" says it'),
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
    monkeypatch.setattr(session.text, "_chat_template", template + "x")
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
        "at most 12 tokens a reply)"
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


# Ends that are not the model's


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


# The verb


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["bundle", *words])


def test_the_defaults_are_those_of_the_dataclasses() -> None:
    arguments = parse()
    defaults = GenerationOptions()
    assert sampling_from_arguments(arguments) == defaults.sampling
    assert arguments.acceptance == defaults.acceptance
    assert arguments.max_new_tokens == defaults.max_new_tokens


def test_sampling_arguments_reach_the_options() -> None:
    words = ["--temperature=0.7", "--top-k=5", "--top-p=0.9", "--min-p=0.1", "--seed=3"]
    assert sampling_from_arguments(parse(*words)) == SamplingOptions(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=3
    )
    with pytest.raises(PromptError, match="temperature is -1"):
        sampling_from_arguments(parse("--temperature", "-1"))


def test_a_chat_that_cannot_work_does_not_start(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TreeError):
        Driver(session, GenerationOptions(tree=load_tree("chain-9")))
    monkeypatch.setattr(TextCodec, "has_chat_template", property(lambda _: False))
    with pytest.raises(PromptError, match="no chat template, so its model cannot chat"):
        Driver(session)


def test_sigterm_leaves_in_the_middle_of_a_reply(tiny_bundle: Bundle) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        driver = Driver(session, LONG)
        driver.on_write = lambda: signal.raise_signal(signal.SIGTERM)
        with sigterm_leaves(), pytest.raises(SystemExit) as left:
            driver.say("hello")
    assert left.value.code == 128 + signal.SIGTERM
    assert len(driver.written) == 1


def command(bundle: Bundle, *words: str) -> list[str]:
    return [sys.executable, "-c", MAIN, str(bundle.path), "--threads", "1", *words]


def piped(bundle: Bundle, text: str | bytes, *words: str) -> "subprocess.CompletedProcess[str]":
    data = text.encode() if isinstance(text, str) else text
    run = subprocess.run(command(bundle, *words), input=data, capture_output=True, timeout=60)
    return subprocess.CompletedProcess(
        run.args, run.returncode, run.stdout.decode(), run.stderr.decode()
    )


def test_piped_input_gives_only_replies(session: MedusaSession, tiny_bundle: Bundle) -> None:
    run = piped(tiny_bundle, 'hello\n"""\nmany\nlines\n"""\n', "--max-new-tokens", "12")
    driver = Driver(session)
    driver.say("hello", '"""many', 'lines"""')
    assert run.stdout == "".join(driver.written)
    assert {"\x10", "\x1d"} & set(run.stdout), "replies are not changed in a pipe"
    assert run.stderr == "" and run.returncode == 0


def test_piped_statistics_have_no_colours(tiny_bundle: Bundle) -> None:
    words = ("--max-new-tokens", "3", "--verbose", "--temperature", "1", "--seed", "1")
    run = piped(tiny_bundle, b"caf\xe9\n/stats\n", *words)
    assert run.returncode == 0, run.stderr
    assert "tokens/s" in run.stderr and "seed 1" in run.stderr
    assert "\x1b" not in run.stderr and PROMPT not in run.stderr + run.stdout


def test_piped_input_that_fails_is_an_error_at_the_end(tiny_bundle: Bundle) -> None:
    run = piped(tiny_bundle, "/foo\nhello\n/save\n", "--max-new-tokens", "3")
    assert run.returncode == 2 and run.stdout
    assert run.stderr.splitlines()[1:] == [
        "error: usage: /save FILE",
        "error: entries that failed: 2; see above",
    ]


def read_until(terminal: int, text: bytes) -> bytes:
    """What the terminal shows up to this text; all there is where the process ends first."""
    seen, end = b"", time.monotonic() + 30
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no {text!r} in {seen!r}"
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other side is closed
            return seen
    return seen


def test_a_terminal_has_a_prompt_and_ctrl_c_leaves_it(tiny_bundle: Bundle) -> None:
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        command(tiny_bundle, "--max-new-tokens", "12", "--verbose"),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        preexec_fn=lambda: os.login_tty(inside),
    )
    os.close(inside)
    try:
        assert b"/help lists the commands" in read_until(terminal, PROMPT.encode())
        os.write(terminal, b"hello\r")
        shown = read_until(terminal, PROMPT.encode())
        assert b"\x1b[2m12 tokens" in shown
        assert not {0x10, 0x1D} & set(shown), "control characters of the reply reach the terminal"
        time.sleep(0.5)  # input() misses a signal between showing its prompt and waiting for keys
        os.write(terminal, b"\x03")
        assert b"Traceback" not in read_until(terminal, b"no such text")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
