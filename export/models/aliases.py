"""The models known by a short name, from `models.json`."""

from functools import cache
from importlib import resources
from pathlib import Path

import msgspec


class PackagedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GGUF file that a Python package carries."""

    requirement: str
    module: str
    file: str


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of `models.json`: where a model is, and what belongs to it.

    Attributes:
        description: text for the user.
        package: the Python package that carries the backbone; None where it is on the hub.
        repository: hub id of the backbone; None where a package carries it.
        heads: a file of this project or a hub id; None where no public heads are known.
        chat_template: a file of this project, for a tokenizer that comes without one.
        tree: its name; None for the target's default.
    """

    description: str
    package: PackagedModel | None = None
    repository: str | None = None
    heads: str | None = None
    chat_template: str | None = None
    tree: str | None = None

    @property
    def heads_source(self) -> str | Path | None:
        """The place of the heads: a shipped file or a hub id; None where no heads are known."""
        if self.heads is None or "/" in self.heads:
            return self.heads
        return Path(str(resources.files("medusa_trt.export.models.shipped") / self.heads))


@cache
def load_aliases() -> dict[str, Alias]:
    """Loads the models known by a short name."""
    data = (resources.files("medusa_trt.export.models.shipped") / "models.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Alias])
