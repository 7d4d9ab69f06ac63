"""`medusa-trt verify`: a bundle against the model that it was made from."""

from dataclasses import dataclass
from typing import Annotated

from medusa_trt.cli.arguments import BundleArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import require_extra


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyArguments(BundleArguments):
    """Compare the logits of a bundle with those of its model, on text and on a draft tree.

    Attributes:
        against: the model: an alias, a folder, a .gguf file or a hub id.
    """

    against: Annotated[str, "--against MODEL"]


def verify(arguments: VerifyArguments) -> None:
    """Shows how close the logits are."""
    with require_extra("comparing", "export"):
        from medusa_trt.export.comparison.check import check_bundle
    for line in check_bundle(arguments.bundle, arguments.against):
        print(line, flush=True)


VERBS = {"verify": Verb(VerifyArguments, verify)}
