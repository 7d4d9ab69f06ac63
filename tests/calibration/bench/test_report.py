"""A benchmark's report as JSON."""

import json

from support.measurements.bench_rows import both, report_of

from medusa_trt.calibration.bench.report import read_peak_memory_bytes


def test_the_file_holds_the_report_and_every_reply() -> None:
    rows = both("a", 2, 1) + both("b", 3, 1)
    report = report_of(rows)
    content = json.loads(report.to_json(rows))
    assert len(content["rows"]) == 4 and content["rows"][0]["new_tokens"] == 5
    assert content["command"] == report.command and content["machine"]["cpu"]
    assert content["summary"]["modes"][1]["speedup"]["median"] == 2.5
    assert report.setup.tree_text == "tree t with 4 nodes"
    assert read_peak_memory_bytes() > 10**7
