"""Options of the command line, made from dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from medusa_trt.cli.options import read_options
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import MedusaError, PromptError, check_range


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What all have.

    Attributes:
        source: what is read.
        level: the base's words.
    """

    source: Annotated[Path, "SOURCE"]
    level: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A group.

    Attributes:
        factor: a factor, 50 % of `low_rank`.
        low_rank: a rank (default: the model's).
        hidden: only for Python.
    """

    factor: float = 5e-5
    low_rank: Annotated[int | None, "--rank R"] = None
    hidden: object = None

    def __post_init__(self) -> None:
        check_range(self, PromptError, "low_rank", 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Base):
    """Do something,
    in one go.

    Attributes:
        level: how far; it goes on
            in a second line.
        needed: must be given.
        colour: a colour.
        sizes: some sizes.
        names: some names.
        texts: may come again.
        files: come together (default: none).
        shout: a switch.
        loud: a pair of switches.
        auto: a pair without a default (default: by itself).
        reversed: a text that is turned round (default: none).
        inner: what belongs together.
    """

    level: int = 3
    needed: str
    colour: Literal["red", "green"] | None = None
    sizes: tuple[int, ...] = (1, 2)
    names: Annotated[tuple[Literal["a", "b"], ...], "--letters"] = ("a",)
    texts: Annotated[tuple[str, ...], "--text TEXT"] = ()
    files: Annotated[tuple[Path, ...], "--files FILE ..."] = ()
    shout: bool = False
    loud: Annotated[bool, "--[no-]loud"] = True
    auto: Annotated[bool | None, "--[no-]auto"] = None
    reversed: Annotated[str | None, lambda text: text[::-1]] = None
    inner: Annotated[Inner, ("factor", "low_rank")] = field(default_factory=Inner)


VERB = Verb(Options, lambda _: None)
GIVEN = ["here", "--needed", "x"]
ALL = (
    "here --needed=x --level 4 --colour red --sizes 3,4 --letters b,a --text 1 --text 2 "
    "--files f g --shout --no-loud --auto --reversed abc --factor 2 --rank 5"
)


def test_only_what_is_typed_differs_from_the_dataclass() -> None:
    assert VERB.parse("do", GIVEN) == Options(source=Path("here"), needed="x")
    assert VERB.parse("do", ALL.split()) == Options(
        source=Path("here"),
        needed="x",
        level=4,
        colour="red",
        sizes=(3, 4),
        names=("b", "a"),
        texts=("1", "2"),
        files=(Path("f"), Path("g")),
        shout=True,
        loud=False,
        auto=True,
        reversed="cba",
        inner=Inner(factor=2.0, low_rank=5),
    )


def test_the_help_is_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = [" ".join(line.split()) for line in VERB.make_parser("do").format_help().splitlines()]
    assert [line for line in lines if line] == [
        "usage: do SOURCE --needed NEEDED [options]",
        "Do something, in one go.",
        "positional arguments:",
        "SOURCE what is read",
        "options:",
        "-h, --help show this help message and exit",
        "--level N how far; it goes on in a second line (default: 3)",
        "--needed NEEDED must be given",
        "--colour {red,green} a colour",
        "--sizes LIST some sizes (default: 1,2)",
        "--letters LIST some names (default: a)",
        "--text TEXT may come again",
        "--files FILE [FILE ...]",
        "come together (default: none)",
        "--shout a switch",
        "--loud, --no-loud a pair of switches (default: --loud)",
        "--auto, --no-auto a pair without a default (default: by itself)",
        "--reversed REVERSED a text that is turned round (default: none)",
        "--verbose show the traceback of an error",
        "inner:",
        "what belongs together",
        "--factor X a factor, 50 % of --rank (default: 5e-05)",
        "--rank R a rank (default: the model's)",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--level", "1.5"], "--level is '1.5': give a whole number"),
        (["--factor", "x"], "--factor is 'x': give a number"),
        (["--sizes", "1,x"], "--sizes is '1,x': give whole numbers, with commas between them"),
        (["--colour", "blue"], "--colour is 'blue': choose from red, green"),
        (["--letters", "a,c"], "--letters is 'a,c': choose from a, b, with commas between them"),
        (["--rank", "9"], "--rank is 9: it must be between 1 and 8"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(words: list[str], message: str) -> None:
    with pytest.raises(MedusaError) as refused:
        VERB.parse("do", [*GIVEN, *words])
    assert str(refused.value) == message


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """Write.

    Attributes:
        text: what is written (default: nothing).
    """

    text: Annotated[str | None, "TEXT"] = None


def test_a_positional_argument_may_be_left_out() -> None:
    verb = Verb(Letter, lambda _: None)
    assert verb.parse("write", []) == Letter()
    assert verb.parse("write", ["a"]) == Letter(text="a")
    assert verb.make_parser("write").format_usage() == "usage: write [TEXT] [options]\n"


def test_the_dataclasss_own_error_is_kept() -> None:
    namespace = VERB.make_parser("do").parse_args([*GIVEN, "--rank", "9"])
    with pytest.raises(PromptError):
        read_options(Options, namespace)
