"""The lines of the log."""

import json

from support.servers.live_server import LiveServer, wait_for


def test_the_log_has_counts_and_no_text(live: LiveServer) -> None:
    reply = live.chat(
        messages=[{"role": "user", "content": "secret"}],
        max_tokens=3,
        user="me",
        prompt_cache_key="k",
    )
    wrong = live.complete(prompt={"secret": 1})
    ids = [each.headers["x-request-id"] for each in (reply, wrong)]
    # A line is written after the answer was sent.
    wait_for(lambda: {line["request"] for line in live.log} >= set(ids))
    lines = {line["request"]: line for line in live.log}
    first, second = (lines[each] for each in ids)
    assert first["status"] == 200 and first["user"] == "me"
    assert first["prompt_cache_key"] == "k"
    assert first["completion_tokens"] == reply.json()["usage"]["completion_tokens"]
    assert first["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]
    assert second["status"] == 400 and second["error"].startswith("invalid_value prompt")
    assert "secret" not in json.dumps(live.log)
