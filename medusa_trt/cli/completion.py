"""`medusa-trt completion`: a script that lets a shell complete verbs, options and their choices."""

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Literal

from medusa_trt.cli.parser import Verb
from medusa_trt.cli.verb_table import HELP, verb_from_name

_ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
autoload -Uz bashcompinit && bashcompinit
"""
"""Lets zsh run the script for bash. Many settings of users have started compinit before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionArguments:
    """Print a script for bash or zsh that completes verbs, options and their choices.

    Attributes:
        shell: bash or zsh.
    """

    shell: Annotated[Literal["bash", "zsh"], "SHELL"]


def print_completion(arguments: CompletionArguments) -> None:
    """Prints the script; it knows all words itself, so that no completion starts Python."""
    groups = {name.split()[0] for name in HELP if " " in name}
    cases = [("", sorted({name.split()[0] for name in HELP}))]
    for group in sorted(groups):
        cases.append((group, [name.split()[1] for name in HELP if name.startswith(f"{group} ")]))
    for name in HELP:
        if name not in groups:
            cases += _list_words(name, verb_from_name(name))
    lines = [f"    {_quote(case)}) words={_quote(' '.join(words))} ;;" for case, words in cases]
    template = (files("medusa_trt.cli") / "completion.sh").read_text("utf-8")
    zsh = _ZSH if arguments.shell == "zsh" else ""
    print(zsh + template.replace("    # CASES", "\n".join(lines)), end="")


def _list_words(name: str, verb: Verb[object]) -> list[tuple[str, list[str]]]:
    """The flags of a verb, and what may follow each flag that takes a value."""
    actions = verb.make_parser(name)._actions
    flags = [flag for action in actions for flag in action.option_strings]
    cases = [(name, sorted(flags))]
    for action in actions:
        choices = re.fullmatch(r"\{(.*)\}", str(action.metavar))
        if action.nargs != 0:
            values = choices[1].split(",") if choices else []
            cases += [(f"{name} {flag}", values) for flag in action.option_strings]
    return cases


def _quote(text: str) -> str:
    return f'"{text}"'


def _explain() -> str:
    return (
        "bash: medusa-trt completion bash >> ~/.bashrc\nzsh:  medusa-trt completion zsh >> ~/.zshrc"
    )


VERBS = {"completion": Verb(CompletionArguments, print_completion, _explain)}
