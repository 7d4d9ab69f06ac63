"""Arguments that several verbs have."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from medusa_trt.runtime.session import MedusaSession


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleArguments:
    """A bundle to work with.

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

    def open(self, bundle: Path) -> "MedusaSession":
        """Opens a bundle.

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
        )
