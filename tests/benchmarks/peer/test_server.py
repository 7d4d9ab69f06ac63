"""A server's process and the clients that measure it, with a server made for the tests."""

import sys
from pathlib import Path

import pytest
from peer.environments import PeerError
from peer.server import ServerProcess, ServerReply, ServerRound

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if sys.argv[2] == "refuse":
            self.send_error(400)
            return
        texts = ["", *body["messages"][-1]["content"].split(), ""]
        chunks = [{"choices": [{"delta": {"content": text}}]} for text in texts]
        chunks.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.reply("".join(f"data: {json.dumps(chunk)}\\n\\n" for chunk in chunks) + "data: [DONE]")

    def reply(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(folder: Path, mode: str) -> str:
    (folder / "server.py").write_text(SERVER)
    return f"{sys.executable} {folder / 'server.py'} {{port}} {mode}"


def test_a_server_answers_and_stands_still_in_between(tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("a b", "c d e", "f")]
    with ServerProcess("tiny", command(tmp_path, "answer"), tmp_path / "log") as server:
        round_ = server.answer(prompts, 6, 2, 1)
        pid = server.pid
        assert Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("T")
    assert not Path(f"/proc/{pid}").exists()
    assert [reply.num_tokens for reply in round_.replies] == [6, 6, 6]
    assert all(0 <= reply.sent_s < reply.first_s <= reply.last_s for reply in round_.replies)
    assert round_.duration_s == max(reply.last_s for reply in round_.replies)
    assert (round_.contender, round_.clients, round_.round) == ("tiny", 2, 1)
    assert round_.peak_memory_bytes > 10**6


def test_a_refusal_names_the_server_and_the_status(tmp_path: Path) -> None:
    with (
        ServerProcess("tiny", command(tmp_path, "refuse"), tmp_path / "log") as server,
        pytest.raises(PeerError, match="tiny answered 400"),
    ):
        server.answer([[{"role": "user", "content": "a"}]], 6, 1, 0)


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"x[0-9]+' is not defined.*exit code 1"):
        ServerProcess("tiny", f"{sys.executable} -c x{{port}}", tmp_path / "log")
    with pytest.raises(PeerError, match=r"cannot start /no/such/server"):
        ServerProcess("tiny", "/no/such/server {port}", tmp_path / "log")


def test_the_figures_of_a_round() -> None:
    replies = [
        ServerReply(num_tokens=5, sent_s=0.5, first_s=0.75, last_s=1.75),
        ServerReply(num_tokens=1, sent_s=1.0, first_s=2.0, last_s=2.0),
    ]
    round_ = ServerRound(
        contender="a", clients=1, round=0, replies=replies, duration_s=2.0, peak_memory_bytes=1
    )
    assert round_.first_token_s == [0.25, 1.0]
    assert round_.between_tokens_s == [0.25]
    assert round_.tokens_per_s == 3.0
