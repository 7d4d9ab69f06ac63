"""The parser of one verb: its page and its errors."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from medusa_trt.cli.parser import Verb
from medusa_trt.errors import MedusaError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Greet.

    Attributes:
        name: who is greeted.
        temperature: how warmly, with a long explanation that ends in two-flags --temperature-x.
        verbose: say more.
    """

    name: Annotated[str, "NAME"]
    temperature: float = 1.0
    verbose: bool = False


USAGE = "usage: greet NAME [options] (greet -h explains it)"
HINT = f"did you mean --temperature? {USAGE}"


def parser_lines() -> list[str]:
    verb = Verb(Arguments, lambda _: None, lambda: "the\n  end")
    return verb.make_parser("greet").format_help().splitlines()


def test_lines_break_between_flags_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = parser_lines()
    assert max(map(len, lines)) <= 60
    assert any(" --temperature-x" in line for line in lines)
    assert lines[-2:] == ["the", "  end"]


def test_a_verb_may_have_its_own_verbose() -> None:
    (line,) = [line for line in parser_lines() if "--verbose" in line]
    assert line.endswith("say more")
    assert Verb(Arguments, lambda _: None).parse("greet", ["you", "--verbose"]).verbose


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"the following arguments are required: NAME; {USAGE}"),
        (["you", "--temperature"], f"--temperature: give a value; {USAGE}"),
        (
            ["you", "--temprature=1"],
            f"there is no option --temprature: {HINT}",
        ),
        (["you", "--xyz"], f"there is no option --xyz; {USAGE}"),
        (
            ["--tempature", "1"],
            f"there is no option --tempature: {HINT}",
        ),
        (["you", "--verbose=3"], f"--verbose: it takes no value, leave '3' out; {USAGE}"),
        (["you", "me"], f"unexpected argument 'me'; {USAGE}"),
        (["you", "-x"], f"unexpected argument '-x'; {USAGE}"),
        (["you", "--", "--xyz"], f"unexpected argument '--xyz'; {USAGE}"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(MedusaError) as refused:
        Verb(Arguments, lambda _: None).parse("greet", words)
    assert str(refused.value) == message


def test_flags_may_be_shortened_and_texts_may_look_like_flags() -> None:
    verb = Verb(Arguments, lambda _: None)
    assert verb.parse("greet", ["you", "--temp=2"]).temperature == 2
    assert verb.parse("greet", ["--", "--you"]).name == "--you"
    assert verb.parse("greet", ["--you and me"]).name == "--you and me"


def test_optional_words_may_stand_behind_options() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Both:
        """Says something.

        Attributes:
            place: where it is said.
            text: what is said (default: nothing).
            loud: say it loudly.
        """

        place: Annotated[str, "PLACE"]
        text: Annotated[str | None, "TEXT"] = None
        loud: bool = False

    verb = Verb(Both, lambda _: None)
    for words in (["here", "--loud", "it"], ["--loud", "here", "it"], ["here", "it", "--loud"]):
        assert verb.parse("say", words) == Both(place="here", text="it", loud=True)
