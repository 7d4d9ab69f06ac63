"""Errors that a user can cause; the command line shows each as one line, and exits with code 2."""

import math
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_SENTENCES, _MAX_SENTENCE = 300, 1000
"""Characters of an error of another library: of several sentences, and of the first one."""


class MedusaError(Exception):
    """Base of all errors that this project raises on purpose.

    The message is one line: what was wrong, the value that was seen, and what to do next.
    """


class MedusaWarning(UserWarning):
    """Something that works, but not as well as it could; the message says what to do."""


class TreeError(MedusaError):
    """A draft tree is malformed, or asks for more than the heads offer."""


class BundleError(MedusaError):
    """A bundle is missing, truncated, changed by hand, or of another format version."""


class EngineError(MedusaError):
    """An engine cannot be created, or failed during a step."""


class GenerationError(EngineError):
    """The engine failed in the middle of a reply.

    Attributes:
        generation: the reply so far (`medusa_trt.runtime.reply.Generation`).
    """

    def __init__(self, message: str, generation: object) -> None:
        super().__init__(message)
        self.generation = generation


class QueueFullError(MedusaError):
    """Too many requests wait for a slot."""


class ServingError(MedusaError):
    """The server cannot be started as it was asked to."""


class PromptError(MedusaError):
    """A prompt or an option of a reply cannot be used."""


class PromptLengthError(PromptError):
    """A prompt has more tokens than the cache holds."""


class GrammarError(PromptError):
    """A JSON schema, a regular expression or a grammar that cannot be used."""


class ProcessorError(PromptError):
    """A logits processor cannot go on in the middle of a reply; other replies are not affected."""


class ExportError(MedusaError):
    """A model cannot be exported, or its bundle differs from the model."""


class BuildError(MedusaError):
    """An engine cannot be built from a bundle."""


class HeadsError(MedusaError):
    """A head checkpoint is malformed or does not fit its model."""


class TrainingError(MedusaError):
    """Training data cannot be made or read, or the options of a training do not fit."""


class CalibrationError(MedusaError):
    """A calibration lacks a measurement or a file that it needs, or its files are damaged."""


def check_range(
    options: object, error: type[MedusaError], names: str, low: float, high: float = math.inf
) -> None:
    """Checks numbers of a dataclass of options.

    Args:
        options: the dataclass.
        error: what is raised.
        names: names of attributes with spaces between them; None as a value is accepted.
        low: the least value that is accepted.
        high: the greatest; with the default every finite number from `low` on is accepted.

    Raises:
        MedusaError: a value is out of range or no number.
    """
    for name in names.split():
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            allowed = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
            raise error(f"{name} is {value}: it must be {allowed}")


@contextmanager
def require_extra(
    purpose: str, *extras: str, error_class: type[MedusaError] = MedusaError, otherwise: str = ""
) -> Iterator[None]:
    """Runs a block of imports.

    Args:
        purpose: what the packages are needed for, as "exporting".
        extras: the extras of medusa-trt that bring them; the user may choose one.
        error_class: what is raised.
        otherwise: what else the user may do, as "leave out --plot".

    Raises:
        MedusaError: a package is missing; the message says what to install.
    """
    try:
        yield
    except ImportError as error:
        commands = " or ".join(f"pip install 'medusa-trt[{extra}]'" for extra in extras)
        advice = f", or {otherwise}" if otherwise else ""
        raise error_class(f"{purpose} needs {error.name or error}: {commands}{advice}") from error


def describe_error(error: BaseException) -> str:
    """Describes an error of another library in one line of whole sentences."""
    text = " ".join(str(error).split()) or type(error).__name__
    ends = [match.end() for match in re.finditer(r"[.!?](?= )|$", text)]
    end = max((end for end in ends if end <= _MAX_SENTENCES), default=ends[0])
    return textwrap.shorten(text[:end], _MAX_SENTENCE, placeholder=" …")
