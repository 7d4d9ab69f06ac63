"""`medusa-trt chat` as a user meets it: its options, in a pipe and in a terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from support.terminal.chat_driver import LONG, Driver

from medusa_trt.cli.arguments import SessionArguments
from medusa_trt.cli.chat_loop import PROMPT
from medusa_trt.cli.verbs.chat import VERBS, leave_on_sigterm
from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession

MAIN = "import sys; from medusa_trt.cli.main import main; sys.exit(main(['chat', *sys.argv[1:]]))"


def test_the_chat_offers_the_options_of_its_replies() -> None:
    words = ["bundle", "--system", "Be brief.", "--temperature", "0.7", "--max-new-tokens", "9"]
    arguments = VERBS["chat"].parse("medusa-trt chat", words)
    sampling = SamplingOptions(temperature=0.7)
    assert arguments.reply == GenerationOptions(sampling=sampling, max_new_tokens=9)
    assert arguments.template.system == "Be brief." and arguments.session == SessionArguments()
    more = ["--posterior-threshold", "0.2", "--posterior-alpha", "0.4", "--presence-penalty", "1"]
    reply = VERBS["chat"].parse("medusa-trt chat", ["bundle", *more]).reply
    assert (reply.posterior_threshold, reply.posterior_alpha) == (0.2, 0.4)
    assert reply.presence_penalty == 1
    with pytest.raises(PromptError, match="--temperature is -1"):
        VERBS["chat"].parse("medusa-trt chat", ["bundle", "--temperature", "-1"])
    with pytest.raises(MedusaError, match="there is no option --echo"):
        VERBS["chat"].parse("medusa-trt chat", ["bundle", "--echo"])


def test_sigterm_leaves_in_the_middle_of_a_reply(tiny_bundle: Bundle) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        driver = Driver(session, LONG)
        driver.on_write = lambda: signal.raise_signal(signal.SIGTERM)
        with leave_on_sigterm(), pytest.raises(SystemExit) as left:
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
    run = piped(tiny_bundle, "café\n/stats\n", *words)
    assert run.returncode == 0, run.stderr
    assert "tokens/s" in run.stderr and "seed 1" in run.stderr
    assert "\x1b" not in run.stderr and PROMPT not in run.stderr + run.stdout


def test_a_line_that_is_no_utf_8_is_refused_with_its_place(tiny_bundle: Bundle) -> None:
    run = piped(tiny_bundle, b"\xef\xbb\xbfhello\r\ncaf\xe9\nhello\n", "--max-new-tokens", "3")
    assert run.returncode == 2 and len(run.stdout.splitlines()) >= 2
    assert run.stderr.startswith("error: line 2 of standard input is not UTF-8 text at byte 3: ")


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
