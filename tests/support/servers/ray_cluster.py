"""Runs the application on a Ray cluster of this machine, for the tests of a Python that has Ray.

Arguments: a port, and the application's arguments as JSON. Each line on standard input is answered
with the process ids of the replicas; the cluster ends with the input.
"""

import json
import sys
from typing import Any

import ray
from ray import serve
from ray.util.state import list_actors

from medusa_trt.serving.ray_app import app


def find_replicas() -> list[int]:
    """The process ids of the replicas."""
    actors: Any = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return [actor.pid for actor in actors if actor.class_name.endswith(":Replica")]


def main() -> None:
    port, arguments = int(sys.argv[1]), json.loads(sys.argv[2])
    ray.init(num_cpus=2, object_store_memory=100_000_000, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(arguments), name="medusa")
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(find_replicas()), flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
