"""`medusa-trt calibrate` as a user meets it, on a tiny bundle."""

import json
import signal
from pathlib import Path

import pytest
from support.measurements.latency_records import set_step_times

from medusa_trt.calibration.latency.measurement import LatencyMeter
from medusa_trt.calibration.noise import CoreWatch
from medusa_trt.calibration.report.results import Calibration, load_calibration
from medusa_trt.cli import main as cli
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.drafting import TokenLookup
from medusa_trt.runtime.manifest import Thresholds, TypicalSpec
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import load_tree

SMALL = ("--num-prompts", "3", "--max-new-tokens", "8")
QUICK = ("--sizes", "2,4,8", "--contexts", "16,64", "--rounds", "2")


def calibrate(*words: object) -> int:
    return cli.main(["calibrate", *map(str, words), "--threads", "1", "--max-length", "448"])


def report(bundle: Path) -> Calibration:
    digest = Bundle.open(bundle).digest
    empty = Calibration(model="", target="", precision="", bundle=digest)
    return load_calibration(bundle / "calibration", empty)


@pytest.fixture
def step_ms(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    return set_step_times(monkeypatch)


@pytest.mark.parametrize("verb", ["", "heads", "latency", "tree", "threshold"])
def test_every_help_text_works(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["calibrate", *verb.split(), "-h"])
    assert stopped.value.code == 0
    assert "usage: medusa-trt calibrate" in capsys.readouterr().out


def test_heads_latency_and_tree(
    bundle: Path, step_ms: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate("heads", bundle, *SMALL) == 0
    out, err = capsys.readouterr()
    assert "top-1 %" in out and "3 replies, up to about" in err
    section = report(bundle).heads
    assert section is not None and section.num_replies == 3 and section.origin.is_complete
    assert section.counts == sorted(section.counts, reverse=True)
    assert calibrate("heads", bundle, *SMALL) == 0
    assert "up to about" not in capsys.readouterr().err  # nothing was left to do

    assert calibrate("latency", bundle, *QUICK) == 0
    out, err = capsys.readouterr()
    assert "ms after 64 tokens" in out and "16 samples, up to about" in err
    (times,) = report(bundle).latency
    assert [(p.context, p.num_nodes) for p in times.points] == [
        (context, size) for context in (16, 64) for size in (1, 2, 4, 8)
    ]
    for point in times.points:
        expected = pytest.approx(5 + 5 * point.num_nodes)
        assert point.step_ms.low == point.step_ms.median == point.step_ms.high == expected
        assert point.host_ms == pytest.approx(0.1 * point.step_ms.median)

    assert calibrate("tree", bundle) == 0
    out, err = capsys.readouterr()
    assert "Plain decoding is recommended" in " ".join(out.split()) and "first" not in err
    opened = Bundle.open(bundle)
    assert opened.tree == load_tree("plain") and opened.manifest.tree_name == "plain"
    found = report(bundle).tree
    assert found is not None and found.written and len(found.previous_tree) == 63
    assert cli.main(["generate", str(bundle), "hello", "--max-new-tokens", "4"]) == 0

    page = (bundle / "calibration" / "report.html").read_text()
    assert page.count("<svg") == 3 and "Plain decoding is recommended" in page
    data = json.loads((bundle / "calibration" / "calibration.json").read_text())
    assert data["latency"][0]["origin"]["machine"]["versions"]["onnxruntime"]
    assert not list(bundle.glob("**/.*partial*"))

    assert calibrate("threshold", bundle, *SMALL) == cli.EXIT_ERROR
    assert "drafts nothing" in capsys.readouterr().err


def test_a_busy_machine_is_named(
    bundle: Path,
    step_ms: dict[str, float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CoreWatch, "count_free_cores", lambda _: 0.25)
    for words in (("latency", bundle, *QUICK), ("heads", bundle, *SMALL), ("tree", bundle)):
        assert calibrate(*words) == 0
        out = " ".join(capsys.readouterr().out.split())
        told = "busy during the measurement: other programs used 0.8 of the cores" in out
        assert told and "calibrate latency --again" in out if words[0] != "heads" else not told


def test_a_dry_run_leaves_the_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    assert calibrate("heads", bundle, *SMALL) == 0
    assert calibrate("latency", bundle, *QUICK, "--batch-size", "2") == 0
    assert calibrate("tree", bundle, "--batch-size", "2", "--dry-run") == 0
    assert "left as it is" in capsys.readouterr().out
    assert files == {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    found = report(bundle).tree
    assert found is not None and not found.written
    plain = found.choice.plain
    assert plain.tokens_per_s == pytest.approx(2e3 / plain.step_ms)


def test_threshold(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_lookup(*_: object) -> None:
        raise AssertionError("typical acceptance is measured for the heads alone")

    monkeypatch.setattr(TokenLookup, "__init__", no_lookup)
    with pytest.raises(AssertionError), MedusaSession(bundle, num_threads=1) as session:
        session.generate("hello")
    words = ("--thresholds", "0.05,0.2", "--temperatures", "0.8")
    assert calibrate("threshold", bundle, *words, *SMALL) == 0
    out, err = capsys.readouterr()
    assert "sampler" in out and "Temperature 0.8: --acceptance" in out
    assert "9 replies, up to about" in err
    section = report(bundle).threshold
    assert section is not None and section.num_prompts == 3
    assert [s.rule.posterior_threshold for s in section.rules] == [None, 0.05, 0.2]
    assert section.rules[0].token_agreement == 1
    assert section.rules[1].rule.posterior_alpha == pytest.approx(0.05**0.5)
    assert calibrate("threshold", bundle, "--alpha", "0.3", *words, *SMALL, "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "6 replies" in err  # the sampler's are kept
    assert "The bundle was left as it is." in out


def test_recommended_thresholds_become_the_bundles_defaults(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the calibration to a reply, which is the one with these thresholds given as flags."""
    words = ["--thresholds", "0.01", "--temperatures", "0.8", "--quality-loss", "99"]
    words += ["--diversity-loss", "1"]
    sampled = ["hello", "--temperature", "1", "--seed", "1", "--acceptance", "typical"]
    sampled += ["--max-new-tokens", "40"]

    def generate(*flags: str) -> tuple[str, str]:
        capsys.readouterr()
        assert cli.main(["generate", str(bundle), *sampled, *flags]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    before, note = generate()
    assert "typical acceptance, ε 0.09, δ 0.3: calibrate threshold can find" in note
    assert before == generate("--posterior-threshold", "0.09", "--posterior-alpha", "0.3")[0]
    assert calibrate("threshold", bundle, *words, *SMALL) == 0
    assert "have these thresholds by default" in capsys.readouterr().out
    spec = TypicalSpec(temperature=0.8, thresholds=Thresholds(0.01, 0.1))
    assert Bundle.open(bundle).manifest.typical == [spec]
    after, note = generate()
    assert "typical acceptance, ε 0.01, δ 0.1; ε and δ calibrated at temperature 0.8" in note
    flags = ["--posterior-threshold", "0.01", "--posterior-alpha", "0.1"]
    same, note = generate(*flags)
    assert same == after != before and "typical acceptance" not in note
    assert generate("--posterior-threshold", "0.09", "--posterior-alpha", "0.3")[0] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_measured(
    number: signal.Signals,
    interruptible: None,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = 0
    sample = LatencyMeter._sample

    def interrupted(meter: LatencyMeter, context: int, num_nodes: int) -> object:
        nonlocal samples
        samples += 1
        if samples == 10:
            signal.raise_signal(number)
        return sample(meter, context, num_nodes)

    monkeypatch.setattr(LatencyMeter, "_sample", interrupted)
    assert calibrate("latency", bundle, *QUICK) == 128 + number
    assert "run the same command again" in capsys.readouterr().err
    (times,) = report(bundle).latency
    assert sum(point.num_samples for point in times.points) == 5  # the estimate took four
    assert not times.origin.is_complete
    assert calibrate("latency", bundle, *QUICK) == 0
    assert "11 samples" in capsys.readouterr().err
    (times,) = report(bundle).latency
    assert [point.num_samples for point in times.points] == [2] * 8


@pytest.mark.parametrize("verb", ["heads", "latency", "tree", "threshold", "quantization"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    verb: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "calibration").write_text("in the way")
    assert calibrate(verb, str(bundle)) == cli.EXIT_ERROR
    err = capsys.readouterr().err
    assert f"error: cannot write {bundle / 'calibration'}" in err and len(err.splitlines()) == 1
    assert "calibrate a copy of the bundle" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("latency", "--sizes", "2,x"), "--sizes is '2,x'"),
        (("latency", "--sizes", "2,1.5"), "whole numbers"),
        (("latency", "--sizes", "0"), "sizes are [0]"),
        (("latency", "--rounds", "0"), "rounds is 0"),
        (("latency", "--batch-size", "0"), "--batch-size is 0"),
        (("heads", "--prompts", "none.txt"), "cannot read none.txt: No such file"),
        (("heads", "--num-prompts", "0"), "--num-prompts is 0"),
        (("heads", "--max-new-tokens", "1"), "--max-new-tokens is 1"),
        (("heads", "--temperature", "-1"), "temperature is -1"),
        (("tree", "--min-speedup", "0.5"), "--min-speedup is 0.5"),
        (("tree", "--context", "0"), "context is 0"),
        (("threshold", "--thresholds", "0"), "thresholds are [0.0]"),
        (("threshold", "--temperatures", "inf"), "temperatures are [inf]"),
        (("threshold", "--alpha", "2"), "alpha is 2.0"),
        (("heads",), "is not a bundle"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(words[0], "/nonexistent", *words[1:]) == cli.EXIT_ERROR
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
