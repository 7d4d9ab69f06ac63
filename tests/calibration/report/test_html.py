"""The report as a page."""

from support.measurements.calibrations import HEADS, LATENCY, QUANTIZATION, THRESHOLD, TREE

from medusa_trt.calibration.report.html import page_from_calibration
from medusa_trt.calibration.report.results import Calibration


def test_the_page_opens_with_the_results_and_hides_long_tables() -> None:
    page = page_from_calibration(
        Calibration(
            model="m",
            target="ort-cpu",
            precision="int8",
            heads=HEADS,
            latency=(LATENCY,),
            tree=TREE,
            threshold=THRESHOLD,
            quantization=QUANTIZATION,
        )
    )
    opening = page[: page.index("<h2>")]
    assert TREE.advice in opening and QUANTIZATION.advice in opening and "ε = 0.09" in opening
    shown = "".join(part.split("<details>")[0] for part in page.split("</details>"))
    assert TREE.choice.best.method in shown
    for table in shown.split("<table>")[1:]:
        assert table.split("</table>")[0].count("<tr>") < 24
