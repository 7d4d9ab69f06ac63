"""Arguments of Ray's config: what is unknown, missing or wrong is refused by name."""

from typing import Any

import pytest

from medusa_trt.errors import ServingError
from medusa_trt.serving.replicas.options import read_arguments


def test_arguments_are_those_of_replicas_and_of_the_server() -> None:
    options, server = read_arguments({"bundle": "b", "max_replicas": 3, "max_queue": 5})
    assert (options.bundle, options.max_replicas, server.max_queue) == ("b", 3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "names no bundle: give bundle: FOLDER"),
        ({"bundle": "b", "port": 1}, "unknown in Ray's config: port; known are"),
        ({"bundle": 5}, "bundle is 5: it must be text"),
        ({"bundle": "b", "max_queue": -1}, "max_queue is -1"),
        ({"bundle": "b", "min_replicas": 3}, "max_replicas is 2: it must be at least 3"),
        ({"bundle": "b", "min_replicas": 0}, "min_replicas is 0: it must be at least 1"),
    ],
)
def test_mistakes_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        read_arguments(arguments)
