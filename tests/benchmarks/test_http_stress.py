"""The requests of the stress, on the tiny model; and what it says of a server that is wrong."""

from dataclasses import replace

import http_stress
from support.servers.live_server import running_server

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession


def test_nothing_is_lost_and_replies_are_those_of_the_session(tiny_bundle: Bundle) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        cases = http_stress.make_cases(session, num_tokens=24)
    server_session = MedusaSession(tiny_bundle, num_threads=1, batch_size=2)
    with server_session, running_server(server_session, max_sequences=2) as live:
        port = int(live.url.rsplit(":", 1)[1])
        report = http_stress.stress(port, cases, num_requests=60, num_clients=6, seed=1)
        assert report.faults == []
        assert sum(report.counts.values()) == 60 and len(report.counts) > 5
        assert server_session.scheduler.is_idle
        wrong = [replace(case, texts=["something else"] * len(case.texts)) for case in cases]
        report = http_stress.stress(port, wrong, num_requests=20, num_clients=6, seed=1)
        assert report.faults and all("is not" in fault for fault in report.faults)
