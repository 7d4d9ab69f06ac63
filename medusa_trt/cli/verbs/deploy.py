"""`medusa-trt deploy`: writes what a device, a container or a cluster needs to run a bundle."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from medusa_trt.cli.arguments import BundleArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import require_extra


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployArguments(BundleArguments):
    """Write the files that a device, a container or a cluster needs to run a bundle.

    Attributes:
        kind: where the bundle will run.
        output: folder to write the files to (default: deploy-KIND).
        overwrite: replace files that exist.
    """

    kind: Literal["container", "compose", "kubernetes", "ray", "triton", "jetson"]
    output: Annotated[Path | None, "--output FOLDER"] = None
    overwrite: bool = False


def deploy(arguments: DeployArguments) -> None:
    """Writes the files, and lists them."""
    with require_extra("deploying", "export"):
        from medusa_trt.export.deploy.deployment import deploy as write_files
    from medusa_trt.runtime.bundle import Bundle

    output = arguments.output or Path(f"deploy-{arguments.kind}")
    bundle = Bundle.open(arguments.bundle)
    for file in write_files(bundle, arguments.kind, output, overwrite=arguments.overwrite):
        print(file)
    place = "/app/bundle of each machine" if arguments.kind == "ray" else output / "bundle"
    print(f"copy the bundle to {place}", file=sys.stderr)


VERBS = {"deploy": Verb(DeployArguments, deploy)}
