"""The page, the board and the alerts of the metrics name what the server exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from support.servers.live_server import running_server
from support.table_session import session_on_table

from medusa_trt.runtime.bundle import Bundle

FOLDER = Path(__file__).parents[2] / "docs/monitoring"
BOARD = json.loads((FOLDER / "grafana.json").read_text("utf-8"))
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
PROMTOOL = shutil.which("promtool")

NO_NAMES = {"and", "or", "by", "on", "group_left", "bool", "offset", "le", "up"}
"""Words of PromQL, and what Prometheus itself measures."""

ALERT_TEST = """
rule_files: [{rules}]
tests:
  - interval: 1m
    input_series:
      - series: 'up{{job="medusa-trt", instance="a"}}'
        values: '1 1 0 0 0 0'
      - series: 'vllm:num_requests_running{{instance="a"}}'
        values: '1x30'
      - series: 'vllm:generation_tokens_total{{instance="a"}}'
        values: '0+100x10 1000x20'
      - series: 'vllm:prompt_tokens_total{{instance="a"}}'
        values: '7x30'
      - series: 'vllm:admission_rejections_total{{instance="b"}}'
        values: '0+3x30'
    alert_rule_test:
      - {{eval_time: 2m, alertname: MedusaServerDown}}
      - eval_time: 4m
        alertname: MedusaServerDown
        exp_alerts: [{{exp_labels: {{severity: critical, job: medusa-trt, instance: a}},
                      exp_annotations: {{summary: "a does not answer"}}}}]
      - {{eval_time: 9m, alertname: MedusaDecodingStands}}
      - eval_time: 20m
        alertname: MedusaDecodingStands
        exp_alerts: [{{exp_labels: {{severity: critical, instance: a}},
                      exp_annotations: {{summary: "a has replies to make, and adds no token"}}}}]
      - eval_time: 20m
        alertname: MedusaQueueFull
        exp_alerts: [{{exp_labels: {{severity: warning, instance: b}},
                      exp_annotations: {{summary: "b refuses requests with status 429"}}}}]
"""


def list_targets() -> list[dict[str, Any]]:
    """The queries of all panels."""
    return [target for panel in BOARD["panels"] for target in panel.get("targets", [])]


def list_names(expression: str) -> set[str]:
    """The names of metrics in PromQL: words outside of matchers, ranges and lists of labels."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", expression)
    bare = re.sub(r"\b(by|on|group_left)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\b[a-z_]+\s*\(", "(", bare)
    return set(re.findall(r"[a-z_][a-z0-9_:]+", re.sub(r"\boffset \w+", " ", bare))) - NO_NAMES


@pytest.fixture(scope="module")
def families(tiny_bundle: Bundle) -> list[Metric]:
    """The measurements of a server that has answered once."""
    session, _ = session_on_table(tiny_bundle, takes_new_trees=True)
    with session, running_server(session, max_sequences=1) as live:
        live.complete(max_tokens=30, ignore_eos=True)
        return list(text_string_to_metric_families(live.client.get("/metrics").text))


@pytest.fixture(scope="module")
def exported(families: list[Metric]) -> dict[str, set[str]]:
    """The labels of each exported name."""
    names: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def test_the_page_has_exactly_what_the_server_exports(families: list[Metric]) -> None:
    page = (FOLDER.parent / "reference/metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w:]+)` \| (\w+) \| ([^|]+) \| .+ \|$", page, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    described = {(name, kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert described == set(list_measurements(families))


def list_measurements(families: list[Metric]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Name, type and labels of each measurement, without those that the client library adds."""
    for family in families:
        if family.name.startswith("process_") or family.name.endswith("_created"):
            continue
        # The parser takes the end of a counter's name off; the server and its boards have it.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        yield name, family.type, frozenset(labels - {"le"})


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target["expr"][:60])
def test_the_board_asks_for_what_the_server_exports(
    target: dict[str, Any], exported: dict[str, set[str]]
) -> None:
    names = list_names(target["expr"])
    assert names and names <= exported.keys(), names - exported.keys()
    matched = set(re.findall(r"[{,]\s*(\w+)\s*=", target["expr"]))
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - {"instance"}
    assert matched | shown <= set().union(*(exported[name] for name in names))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_alerts_ask_for_what_the_server_exports(
    rule: dict[str, Any], exported: dict[str, set[str]]
) -> None:
    names = list_names(rule["expr"])
    assert names <= exported.keys(), names - exported.keys()


def test_the_board_can_be_imported() -> None:
    assert BOARD["schemaVersion"] >= 39 and BOARD["title"] and BOARD["uid"]
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert used <= variables.keys() | {"__rate_interval"}
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24
        assert sum(overlaps(place, other) for other in places) == 1


def overlaps(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether two panels share a place of the grid."""
    return all(
        one[axis] < other[axis] + other[size] and other[axis] < one[axis] + one[size]
        for axis, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt install prometheus")
def test_prometheus_reads_every_expression_and_alerts(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"board:{number}",
            "expr": re.sub(r"\$__rate_interval", "1m", target["expr"]).replace("$model", ".*"),
        }
        for number, target in enumerate(list_targets())
    ]
    board = tmp_path / "board.yml"
    board.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    alerts = tmp_path / "alerts_test.yml"
    alerts.write_text(ALERT_TEST.format(rules=FOLDER / "alerts.yml"))
    for command in (
        ["check", "rules", str(board), str(FOLDER / "alerts.yml")],
        ["test", "rules", str(alerts)],
    ):
        run = subprocess.run([PROMTOOL or "", *command], capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
