"""What is refused before a route: bodies that are too large, and clients without a key."""

from pathlib import Path

import pytest
from support.servers.live_server import running_server

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession


@pytest.mark.parametrize("has_length", [True, False])
def test_a_large_body_is_refused(tiny_bundle: Bundle, has_length: bool) -> None:
    content = b'{"prompt": "' + b"a" * 6000 + b'"}'
    sent = content if has_length else iter([content[:3000], content[3000:]])
    session = MedusaSession(tiny_bundle, num_threads=1)
    with session, running_server(session, max_sequences=1, max_body_bytes=5000) as live:
        reply = live.client.post("/v1/completions", content=sent)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


def test_a_key_is_needed_where_there_is_a_file_of_them(tiny_bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    session = MedusaSession(tiny_bundle, num_threads=1)
    with session, running_server(session, max_sequences=1, api_key_file=keys) as live:
        for key in ("", "Bearer", "Bearer first", "Basic first-key", "Bearer first-key2"):
            refused = live.client.get("/v1/models", headers={"authorization": key})
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert live.client.get("/v1/models", headers=headers).status_code == 200
        for path in ("/health", "/ready", "/metrics"):
            assert live.client.get(path).status_code == 200
