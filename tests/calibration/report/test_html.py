"""The report as a page."""

import json
from dataclasses import replace

from support.measurements.calibrations import HEADS, LATENCY, QUANTIZATION, THRESHOLD, TREE

from medusa_trt.calibration.noise import Noise
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


def test_what_disturbed_a_measurement_is_said_once() -> None:
    latency = replace(LATENCY, noise=Noise(missing_cores=1.3, spread=0.5))
    assert latency.warning is not None
    tree = replace(TREE, advice=f"{TREE.advice} {latency.warning}")
    for section in (None, tree):
        calibration = Calibration(
            model="m", target="ort-cpu", precision="int8", latency=(latency,), tree=section
        )
        assert page_from_calibration(calibration).count(latency.warning) == 1


def test_the_page_names_prompts_and_trees_as_a_user_does() -> None:
    page = page_from_calibration(
        Calibration(model="m", target="ort-cpu", precision="int8", tree=TREE)
    )
    assert "replies to packaged prompts" in page
    chosen = [list(node) for node in TREE.choice.chosen.medusa_choices]
    assert f"<code>{json.dumps(chosen)}</code>" in page
