"""Arguments that several verbs have."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from medusa_trt.errors import PromptError
from medusa_trt.files import read_text
from medusa_trt.runtime.hub import find_bundle

if TYPE_CHECKING:
    from medusa_trt.runtime.session import MedusaSession


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleArguments:
    """A bundle to work with.

    Attributes:
        bundle: folder that medusa-export wrote, or the hub's OWNER/NAME or OWNER/NAME@REVISION.
    """

    bundle: Annotated[Path, "BUNDLE", find_bundle]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderArguments:
    """A bundle to change; a download would be restored later.

    Attributes:
        bundle: folder that medusa-export wrote.
    """

    bundle: Annotated[Path, "BUNDLE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArguments:
    """How a bundle's engine is created.

    Attributes:
        num_threads: threads for one step on the CPU (default: one for each usable core).
        max_length: longest sequence, prompts and replies together, in tokens (default: the most
            that the bundle allows).
    """

    num_threads: Annotated[int | None, "--threads N"] = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionArguments(EngineArguments):
    """What runs a bundle.

    Attributes:
        backend: what runs the bundle: ort-cpu, ort-cuda, tensorrt or tensorrt-rtx (default: what
            the bundle was exported for).
    """

    backend: Annotated[str | None, "--backend NAME"] = None

    def open(self, bundle: Path, batch_size: int = 1) -> "MedusaSession":
        """Opens a bundle for `batch_size` replies at the same time.

        Raises:
            MedusaError: the bundle is damaged, or this machine lacks the backend.
        """
        # This import takes long, and wrong options are refused before it.
        from medusa_trt.runtime.session import MedusaSession

        return MedusaSession(
            bundle,
            backend=self.backend,
            num_threads=self.num_threads,
            max_length=self.max_length,
            batch_size=batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateArguments:
    """What the chat template gets besides the messages.

    Attributes:
        system: the system message (default: the chat template's, if it has one).
        tools: a file with the functions that the model may call, a JSON list as in OpenAI's API
            (default: none).
        variables: a further value, as enable_thinking=false; the value is JSON, or else a text; the
            flag may be repeated (default: none).
    """

    system: Annotated[str | None, "--system TEXT"] = None
    tools: Annotated[Path | None, "--tools FILE"] = None
    variables: Annotated[tuple[str, ...], "--template-variable NAME=VALUE"] = ()

    def read_tools(self) -> tuple[dict[str, Any], ...]:
        """Reads the file of tools.

        Raises:
            PromptError: it cannot be read, or holds something else.
        """
        tools = [] if self.tools is None else read_json(self.tools)
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise PromptError(
                f"{self.tools} holds no list of JSON objects: write one for each tool"
            )
        return tuple(tools)

    def read_variables(self) -> dict[str, Any]:
        """Reads the values.

        Raises:
            PromptError: one has no name.
        """
        variables = {}
        for pair in self.variables:
            name, is_set, text = pair.partition("=")
            if not is_set or not name.isidentifier():
                raise PromptError(f"--template-variable is {pair!r}: write NAME=VALUE")
            try:
                variables[name] = json.loads(text)
            except ValueError:
                variables[name] = text
        return variables


def read_json(path: Path) -> Any:
    """Reads a file of JSON.

    Raises:
        PromptError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path, PromptError))
    except ValueError as error:
        raise PromptError(f"{path} is not JSON ({error}): correct it") from error
