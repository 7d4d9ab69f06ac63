"""The comparison of servers: its arguments and its table."""

import io

import pytest
from peer.server import ServerReply, ServerRound
from rich.console import Console
from servers import ServersReport, parse_servers, print_report

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.engines.machine import Machine


def test_a_server_is_a_name_and_a_command_with_a_port() -> None:
    assert parse_servers(["a=x --port={port}", "b=y {port}"]) == {
        "a": "x --port={port}",
        "b": "y {port}",
    }
    for texts in (["a=x"], ["x {port}"], ["=x {port}"]):
        with pytest.raises(MedusaError, match="give NAME=COMMAND"):
            parse_servers(texts)
    with pytest.raises(MedusaError, match="--server a stands twice"):
        parse_servers(["a=x {port}", "a=y {port}"])


def test_the_table_compares_with_the_first_server() -> None:
    rounds = [
        ServerRound(
            contender=name,
            clients=1,
            round=0,
            replies=[ServerReply(num_tokens=11, sent_s=0.0, first_s=0.5, last_s=last_s)],
            duration_s=last_s,
            peak_memory_bytes=10**6,
        )
        for name, last_s in (("ours", 1.0), ("other", 2.0))
    ]
    report = ServersReport(
        command="servers.py",
        date="",
        servers={"ours": "", "other": ""},
        num_prompts=1,
        max_tokens=11,
        machine=Machine.detect(),
        rounds=rounds,
    )
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(report, console)
    lines = [line.split("│") for line in console.export_text().split("\n") if "│" in line]
    assert [[cell.strip() for cell in line[1:6]] for line in lines] == [
        ["ours", "11", "1.00x", "500.0, 500.0", "50.0, 50.0"],
        ["other", "6", "2.00x", "500.0, 500.0", "150.0, 150.0"],
    ]
