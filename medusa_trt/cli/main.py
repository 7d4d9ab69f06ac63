"""The command line: `medusa-trt VERB` and `medusa-export`."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from typing import NoReturn

from medusa_trt import __version__
from medusa_trt.cli.parser import Parser
from medusa_trt.cli.verb_table import HELP, verb_from_name
from medusa_trt.errors import MedusaError, MedusaWarning
from medusa_trt.interrupts import find_interrupt_code

EXIT_ERROR = 2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `medusa-trt`; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    num_words = next((num for num in (2, 1) if " ".join(words[:num]) in HELP), 0)
    return _run("medusa-trt", " ".join(words[:num_words]), words[num_words:])


def export_main(argv: Sequence[str] | None = None) -> int:
    """Runs `medusa-export`, the same as `medusa-trt export`; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    return _run("medusa-export", "export", words)


def _run(program: str, name: str, words: list[str]) -> int:
    """Runs a verb; whatever a user can cause ends in one line and exit code 2."""
    warnings.showwarning = show_warning
    # transformers' new name for a model's cache is of no use to who types a command.
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal may lack a letter of a reply.
    try:
        if name == "" or any(other.startswith(f"{name} ") for other in HELP):
            _answer_without_verb(name, words)
        verb = verb_from_name(name)
        command = program if program == "medusa-export" else f"{program} {name}"
        return verb.call(command, words)
    except MedusaError as error:
        if "--verbose" in words:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of the output has left, as `head` does; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Files are written by `replace_file` and its like; what is left is standard output.
        if error.filename is not None or error.errno not in _NO_SPACE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: cannot write standard output: {error.strerror}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(": ".join(["interrupted", *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
        return find_interrupt_code()


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    """Shows a warning of this project in one line, and others as Python does."""
    if issubclass(category, MedusaWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _answer_without_verb(name: str, words: list[str]) -> NoReturn:
    """Shows the verbs, all or those of a group, where no verb was called.

    Raises:
        MedusaError: the user did not ask for help.
        SystemExit: the user did.
    """
    page = make_listing(name)
    page.check_flags(words)
    _, unknown = page.parse_known_args(words)
    if not unknown:
        page.error("give a verb")
    typed = f"{name} {unknown[0]}".lstrip()
    begun = [verb for verb in HELP if verb.startswith(typed)]
    similar = begun if len(begun) == 1 else get_close_matches(typed, HELP, n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"{page.prog} -h lists the verbs"
    raise MedusaError(f"there is no verb {unknown[0]!r}: {hint}")


def make_listing(group: str) -> Parser:
    """Makes the page that lists the verbs of a group, as "heads", or with "" all verbs."""
    verbs = [name for name in HELP if name.rpartition(" ")[0] == group]
    lines = [f"  {name.removeprefix(group).lstrip():<13} {HELP[name]}" for name in verbs]
    command = f"medusa-trt {group}".rstrip()
    about = HELP.get(group, "Medusa decoding on ONNX Runtime and TensorRT")
    page = Parser(command, "\n".join([f"{about[0].upper()}{about[1:]}.", "", "verbs:", *lines]))
    page.usage = f"{command} VERB [options]"
    page.epilog = f"{command} VERB -h explains a verb."
    if not group:
        page.add_argument("--version", action="version", version=f"medusa-trt {__version__}")
    return page
