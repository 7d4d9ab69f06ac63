"""Options of replicas, and of the server that each of them is."""

from dataclasses import dataclass, fields
from typing import Any

from medusa_trt.errors import ServingError, check_range
from medusa_trt.serving.options import ServingOptions
from medusa_trt.types_of_options import check_types

_ADDRESS = {"host", "port"}
"""Options of the server that Ray's own HTTP proxy has in their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What Ray's config may say of the replicas, besides the options of the server.

    Attributes:
        bundle: folder of the bundle, the same on each machine.
        backend: what runs the bundle (default: what it was exported for).
        num_threads: threads of a replica on the CPU (default: one for each usable core).
        max_length: longest sequence in tokens (default: the most that the bundle allows).
        min_replicas, max_replicas: least and largest number of replicas.
        num_cpus, num_gpus: what Ray reserves for each replica.
        num_fronts: number of processes that pass requests on to the replicas.
    """

    bundle: str
    backend: str | None = None
    num_threads: int | None = None
    max_length: int | None = None
    min_replicas: int = 1
    max_replicas: int = 2
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_fronts: int = 1

    def __post_init__(self) -> None:
        check_types(self, ServingError)
        check_range(self, ServingError, "min_replicas num_fronts", 1)
        check_range(self, ServingError, "max_replicas", self.min_replicas)
        check_range(self, ServingError, "num_cpus num_gpus", 0)


def read_arguments(arguments: dict[str, Any]) -> tuple[ReplicaOptions, ServingOptions]:
    """Reads the arguments of Ray's config.

    Raises:
        ServingError: one is unknown, missing or wrong.
    """
    of_replicas = {field.name for field in fields(ReplicaOptions)}
    of_servers = {field.name for field in fields(ServingOptions)} - _ADDRESS
    if unknown := arguments.keys() - of_replicas - of_servers:
        raise ServingError(
            f"unknown in Ray's config: {', '.join(sorted(unknown))}; known are "
            f"{', '.join(sorted(of_replicas | of_servers))}"
        )
    if "bundle" not in arguments:
        raise ServingError("Ray's config names no bundle: give bundle: FOLDER")
    server = {name: value for name, value in arguments.items() if name in of_servers}
    replicas = {name: value for name, value in arguments.items() if name in of_replicas}
    return ReplicaOptions(**replicas), ServingOptions(**server)
