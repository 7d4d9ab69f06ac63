"""Servers that the tests of a file share."""

from collections.abc import Iterator

import pytest
from support.servers.live_server import LiveServer, running_server

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession


@pytest.fixture(scope="module")
def live(tiny_bundle: Bundle) -> Iterator[LiveServer]:
    """A server of the tiny model that makes two replies at a time."""
    session = MedusaSession(tiny_bundle, num_threads=1, batch_size=2)
    with session, running_server(session, max_sequences=2) as live:
        yield live


@pytest.fixture(scope="module")
def offline(tiny_bundle: Bundle) -> Iterator[MedusaSession]:
    """A session of the same model without a server."""
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        yield session
