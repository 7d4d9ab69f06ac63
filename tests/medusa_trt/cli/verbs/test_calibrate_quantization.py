"""`medusa-trt calibrate quantization` as a user meets it, on a tiny bundle."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medusa_trt.calibration.quantization.estimate import SiteEstimator
from medusa_trt.calibration.quantization.meter import QuantizationMeter, Text
from medusa_trt.calibration.quantization.section import QuantizationSection
from medusa_trt.calibration.report.results import (
    Calibration,
    load_calibration,
)
from medusa_trt.cli import main as cli
from medusa_trt.export.quantization.plan import plan_from_file
from medusa_trt.export.weight_formats import WeightFormat
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import find_library

SMALL = ("--num-prompts", "3", "--max-new-tokens", "12")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def calibrate(*words: object) -> int:
    command = ["calibrate", "quantization", *map(str, words)]
    return cli.main([*command, "--threads", "1", "--max-length", "448"])


def section_of(bundle: Path) -> QuantizationSection:
    digest = Bundle.open(bundle).digest
    empty = Calibration(model="", target="", precision="", bundle=digest)
    found = load_calibration(bundle / "calibration", empty).quantization
    assert found is not None
    return found


def test_a_plan_is_found_and_exported(
    bundle: Path,
    tiny_model: Path,
    tiny_heads: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert calibrate(bundle, "--model", tiny_model, *SMALL, "--max-kl", "0.1") == 0
    out, err = capsys.readouterr()
    assert "3 replies, up to about" in err and "measurements, up to about" in err
    assert "--quantization-plan" in out and "KL predicted" in out
    section = section_of(bundle)
    assert section.origin.is_complete and section.num_replies == 3
    plans = {plan.name: plan for plan in section.plans}
    assert list(plans) == ["unquantized", "int8", "int4", "all int4", "plan"]
    assert plans["unquantized"].kl == 0 and plans["unquantized"].agreement == 1
    chosen = plans["plan"]
    assert chosen.kl <= 0.1 and plans["int8"].kl < plans["int4"].kl
    assert plans["all int4"].size_bytes < chosen.size_bytes <= plans["int8"].size_bytes
    assert sum(chosen.counts.values()) == len(section.sites) == 9
    for site in section.sites:
        assert [cost.format for cost in site.costs] == ["int4", "int8"]
        assert site.costs[0].kl > site.costs[1].kl > 0
    page = (bundle / "calibration" / "report.html").read_text()
    assert page.count("<svg") == 1 and "Quantization" in page
    path = bundle / "calibration" / "quantization.json"
    plan = plan_from_file(path)
    assert {s.name: s.format for s in plan.sites} == {s.name: s.chosen for s in section.sites}

    assert calibrate(bundle, "--model", tiny_model, *SMALL, "--max-kl", "0.1") == 0
    assert "up to about" not in capsys.readouterr().err  # all was known
    again = section_of(bundle)
    assert (again.plans, again.sites) == (section.plans, section.sites)

    if find_library() is None:
        return
    command = ["export", "--model", tiny_model, "--heads", tiny_heads, "--tree", "chain-2"]
    command += ["--quantization-plan", path, "--output", tmp_path / "planned"]
    assert cli.main(list(map(str, command))) == 0
    assert cli.main(["verify", str(tmp_path / "planned"), "--against", str(tiny_model)]) == 0


@pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")
def test_compensated_values_are_found_and_exported(
    bundle: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--precision", "int4", "--compensate", "--compensation-prompts", "6")
    words = (bundle, "--model", tiny_model, *SMALL, *options)
    assert calibrate(*words) == 0
    out, err = capsys.readouterr()
    assert "9 replies, up to about" in err and "of 6 replies with their prompts" in err
    plans = {plan.name: plan for plan in section_of(bundle).plans}
    assert list(plans) == ["plan", "plan, compensated"] and "plan, compensated" in out
    nearest, compensated = plans["plan"], plans["plan, compensated"]
    assert nearest.counts == {"int4": 8, "int8": 1}
    assert compensated.predicted_kl is None and compensated.kl < nearest.kl
    assert nearest.size_bytes == compensated.size_bytes
    assert "plan, compensated" in (bundle / "calibration" / "report.html").read_text()
    file = bundle / "calibration" / "quantization.safetensors"
    written = file.stat().st_mtime_ns

    assert calibrate(*words) == 0
    assert "of 6 replies" not in capsys.readouterr().err  # The file is there.
    assert file.stat().st_mtime_ns == written
    assert section_of(bundle).plans[-1] == compensated

    command = ["export", "--model", tiny_model, "--heads", "none", "--output", tmp_path / "planned"]
    command += ["--quantization-plan", bundle / "calibration" / "quantization.json"]
    assert cli.main(list(map(str, command))) == 0
    assert "15 carried over exactly" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-1])
    assert cli.main(list(map(str, [*command, "--overwrite"]))) == cli.EXIT_ERROR
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert "is truncated or is not the file" in line and "--compensate" in line


def test_modelopt_gets_a_file(
    bundle: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--target", "tensorrt", "--max-kl", "0.1")
    assert calibrate(bundle, "--model", tiny_model, *SMALL, *words) == 0
    assert "modelopt.onnx.quantization" in " ".join(capsys.readouterr().out.split())
    found = json.loads((bundle / "calibration" / "modelopt.json").read_text())
    assert set(found) == {
        "quantize_mode",
        "calibration_method",
        "nodes_to_exclude",
        "layers_8bit",
    }


def test_an_interrupt_keeps_what_was_measured(
    interruptible: None,
    bundle: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (bundle, "--model", tiny_model, *SMALL, "--max-kl", "0.1")
    estimate, measure = SiteEstimator.estimate, QuantizationMeter.measure
    estimates, measured = 0, 0

    def interrupted_estimate(self: SiteEstimator, text: Text, seed: int) -> object:
        nonlocal estimates
        estimates += 1
        if estimates == 3:
            signal.raise_signal(signal.SIGTERM)
        return estimate(self, text, seed)

    def interrupted_measure(
        self: QuantizationMeter, formats: dict[str, WeightFormat], matrices: None
    ) -> object:
        nonlocal measured
        measured += 1
        if measured == 3:
            signal.raise_signal(signal.SIGINT)
        return measure(self, formats, matrices)

    monkeypatch.setattr(SiteEstimator, "estimate", interrupted_estimate)
    monkeypatch.setattr(QuantizationMeter, "measure", interrupted_measure)
    assert calibrate(*words) == 128 + signal.SIGTERM
    out, err = capsys.readouterr()
    assert "Interrupted before a plan was found" in out and "run the same command again" in err
    section = section_of(bundle)
    assert not section.origin.is_complete and not section.plans
    assert all(len(site.costs) == 2 for site in section.sites)
    assert calibrate(*words) == 128 + signal.SIGINT
    assert estimates == 4 and measured == 3
    assert len(section_of(bundle).plans) == 2
    assert not (bundle / "calibration" / "quantization.json").exists()
    assert calibrate(*words) == 0
    assert estimates == 4
    resumed = section_of(bundle)

    shutil.rmtree(bundle / "calibration")
    monkeypatch.undo()
    assert calibrate(*words) == 0
    whole = section_of(bundle)
    assert (whole.sites, whole.plans) == (resumed.sites, resumed.plans)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-kl", "0"), "--max-kl is 0.0: it must be above 0"),
        (("--max-kl", "0.1", "--max-size", "2"), "exclude each other"),
        (("--max-kl", "0.1", "--precision", "int4"), "--precision excludes --max-kl"),
        (
            ("--precision", "int3"),
            "--precision is int3: with formats int4, int8 target ort-cpu has",
        ),
        (("--compensation-prompts", "0"), "--compensation-prompts is 0: it must be at least 1"),
        (
            ("--compensate", "--compensation-prompts", "9999"),
            "for 3 and 9999 more (num_prompts is 10002: it",
        ),
        (("--max-new-tokens", "1"), "--max-new-tokens is 1"),
        ((), "name the unquantized model with --model"),
        (("--model", "none"), "unknown model 'none'"),
        (("--target", "cloud"), "unknown target 'cloud'"),
        (("--formats", "int4,int3"), "no format 'int3': choose from int4, int8, fp32"),
        (("--formats", "fp32"), "name a format that rounds weights"),
        (("--max-size", "0.01"), "the smallest plan takes"),
        (("--max-kl", "0.0001"), "the best plan has"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...],
    message: str,
    bundle: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = () if words == () or "--model" in words else ("--model", tiny_model)
    assert calibrate(bundle, *SMALL, *model, *words) == cli.EXIT_ERROR
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1] and "Traceback" not in err


def test_the_help_text_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["calibrate", "quantization", "-h"])
    assert stopped.value.code == 0
    assert "--max-kl" in capsys.readouterr().out
