"""`medusa-trt calibrate quantization`: its estimates and measurements, and as a user meets it."""

import copy
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from support.reference.linear import quantized_rows
from support.tiny_models import VOCAB_SIZE, llama_config, random_model, save_tiny_model
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.estimate import SiteEstimator
from medusa_trt.calibration.quantization.meter import QuantizationMeter, Text, logits_of
from medusa_trt.calibration.quantization.section import QuantizationSection
from medusa_trt.calibration.report.results import (
    Calibration,
    load_calibration,
)
from medusa_trt.cli import main as cli
from medusa_trt.export.quantization.library import BLOCK_SIZES, dequantized_weight, quantized_weight
from medusa_trt.export.quantization.plan import plan_from_file
from medusa_trt.export.quantization.rounding import LibraryRounding, StandardRounding
from medusa_trt.export.quantization.sites import Site, sites_from_model
from medusa_trt.export.weight_formats import BITS, WeightFormat
from medusa_trt.runtime.engines.operators import library_path

SMALL = ("--num-prompts", "3", "--max-new-tokens", "12")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def texts(num_texts: int = 2) -> list[Text]:
    rng = np.random.default_rng(0)
    lengths = ((9, 17), (4, 6), (12, 30))[:num_texts]
    return [
        Text(*(tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in pair)) for pair in lengths
    ]


def slowly_rounded(
    model: PreTrainedModel, sites: list[Site], formats: dict[str, WeightFormat]
) -> PreTrainedModel:
    """A copy that multiplies as the operator library does, one number at a time."""
    rounded = copy.deepcopy(model)
    for site in sites:
        if (format_ := formats.get(site.name)) is None:
            continue
        for path in site.modules:
            bits = BITS[format_]
            matrix = model.get_parameter(f"{path}.weight").detach().numpy().T
            weight = dequantized_weight(quantized_weight(matrix, bits), *matrix.shape)

            def forward(
                x: torch.Tensor, weight: np.ndarray = weight, block: int = BLOCK_SIZES[bits]
            ) -> torch.Tensor:
                rows = quantized_rows(x.reshape(-1, x.shape[-1]).numpy(), block) @ weight
                return torch.from_numpy(rows.astype(np.float32)).reshape(*x.shape[:-1], -1)

            rounded.get_submodule(path).forward = forward
    return rounded


def slow_logits(model: PreTrainedModel, text: Text) -> np.ndarray:
    """After each position, every time from the text's beginning."""
    ids = [*text.prompt_ids, *text.token_ids]
    rows = []
    for length in range(len(text.prompt_ids), len(ids)):
        with torch.no_grad():
            rows.append(model(torch.tensor([ids[:length]])).logits[0, -1].double().numpy())
    return np.array(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_a_measurement_equals_a_slow_computation(tied: bool) -> None:
    model = random_model(llama_config(tie_word_embeddings=tied))
    sites = sites_from_model(model)
    meter = QuantizationMeter(model, sites, LibraryRounding(), texts())
    before = [slow_logits(model, text) for text in texts()]
    cases: list[dict[str, WeightFormat]] = [
        {"layers.1.gate_up": "int4"},
        {"unembedding": "int8", "layers.0.qkv": "int4"},
        {site.name: "int8" for site in sites},
        {"layers.0.down": "int8"},
    ]
    for formats in cases:
        found = meter.measure(formats)
        rounded = slowly_rounded(model, sites, formats)
        after = [slow_logits(rounded, text) for text in texts()]
        p, q = (np.exp(np.concatenate(each)) for each in (before, after))
        assert found.kl == pytest.approx(entropy(p, q, axis=1).mean(), rel=2e-2)
        assert found.agreement == (p.argmax(-1) == q.argmax(-1)).mean()
        assert [len(rows) for rows in found.hidden] == [17, 6]
    # What was rounded is as it was.
    assert meter.measure({}).kl == 0
    for text, logits in zip(texts(), before, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(logits_of(model, text).numpy(), logits, atol=1e-4)


def test_hidden_states_are_what_the_heads_read() -> None:
    model = random_model(llama_config())
    text = texts(1)[0]
    meter = QuantizationMeter(model, sites_from_model(model), LibraryRounding(), [text])
    with torch.no_grad():
        ids = torch.tensor([[*text.prompt_ids, *text.token_ids[:-1]]])
        expected = model.model(ids).last_hidden_state[0, len(text.prompt_ids) - 1 :]
    found = meter.measure({"unembedding": "int4"}).hidden[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_an_estimate_is_half_the_square_of_the_slope() -> None:
    """Against finite differences: what the drawn tokens' likelihood loses when a site moves."""
    model = random_model(llama_config(initializer_range=0.1))
    text, sites = texts(1)[0], sites_from_model(model)
    estimator = SiteEstimator(model, sites, StandardRounding(), ["int4"])
    found = estimator.estimate(text, seed=5, num_samples=1)["int4"]
    assert list(found) == [site.name for site in sites]
    with torch.no_grad():
        probabilities = logits_of(model, text).softmax(-1)
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(5))
    model.double()

    def likelihood() -> float:
        with torch.no_grad():
            return float(logits_of(model, text).log_softmax(-1).gather(1, drawn).sum())

    for site in sites:
        slope = 0.0
        for path in site.modules:
            weight = model.get_parameter(f"{path}.weight")
            own = weight.detach().clone()
            matrix = own.float().numpy().T
            rounded = StandardRounding().weight(matrix, "int4")
            change = torch.from_numpy(rounded - matrix).T.double()
            step = 1e-2  # not less: the norms compute in single precision all the same
            weight.data = own + step * change
            above = likelihood()
            weight.data = own - step * change
            slope += (above - likelihood()) / (2 * step)
            weight.data = own
        assert found[site.name] == pytest.approx(slope**2 / 2, rel=0.01)


def test_estimates_agree_with_measurements() -> None:
    model = random_model(llama_config(initializer_range=0.05, num_hidden_layers=1))
    sites, rounding = sites_from_model(model), LibraryRounding()
    text = texts(3)[2]
    formats: tuple[WeightFormat, ...] = ("int8", "int4")
    estimated = SiteEstimator(model, sites, rounding, formats).estimate(text, 0, 200)
    meter = QuantizationMeter(model, sites, rounding, [text])
    for format_ in formats:
        for site in sites:
            measured = meter.measure({site.name: format_}).kl * len(text.token_ids)
            # 200 draws have a standard error of 10 %.
            assert estimated[format_][site.name] == pytest.approx(measured, rel=0.35)


def calibrate(*words: object) -> int:
    command = ["calibrate", "quantization", *map(str, words)]
    return cli.main([*command, "--threads", "1", "--max-length", "448"])


def section_of(bundle: Path) -> QuantizationSection:
    empty = Calibration(model="", target="", precision="")
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

    if library_path() is None:
        return
    command = ["export", "--model", tiny_model, "--heads", tiny_heads, "--tree", "chain-2"]
    command += ["--quantization-plan", path, "--output", tmp_path / "planned"]
    assert cli.main(list(map(str, command))) == 0
    assert cli.main(["verify", str(tmp_path / "planned"), "--against", str(tiny_model)]) == 0


def test_a_size_is_kept(bundle: Path, tiny_model: Path) -> None:
    assert calibrate(bundle, "--model", tiny_model, *SMALL, "--max-size", "0.07") == 0
    section = section_of(bundle)
    plan, all_int8 = section.plans[-1], section.plans[1]
    assert plan.name == "plan" and plan.size_bytes <= 70_000 < all_int8.size_bytes
    smaller = [point for point in section.frontier if point.size_bytes <= 70_000]
    assert plan.predicted_kl == pytest.approx(smaller[-1].predicted_kl)


def test_a_plan_for_a_device(bundle: Path, tiny_model: Path) -> None:
    words = ("--target", "tensorrt", "--formats", "int4,fp8,fp16", "--max-kl", "0.02")
    assert calibrate(bundle, "--model", tiny_model, *SMALL, *words) == 0
    section = section_of(bundle)
    assert section.target == "tensorrt" and section.plans[-1].kl <= 0.02
    assert {plan.name for plan in section.plans} >= {"int4", "fp8", "all int4", "all fp8"}
    assert not (bundle / "calibration" / "modelopt.json").exists()  # it has no such mix
    plan = plan_from_file(bundle / "calibration" / "quantization.json")
    assert plan.target == "tensorrt" and {s.format for s in plan.sites} <= {"int4", "fp8", "fp16"}


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
    # A plan for the processor leaves no file for another one behind.
    assert calibrate(bundle, "--model", tiny_model, *SMALL, "--max-kl", "0.1") == 0
    assert not (bundle / "calibration" / "modelopt.json").exists()


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

    def interrupted_measure(self: QuantizationMeter, formats: dict[str, WeightFormat]) -> object:
        nonlocal measured
        measured += 1
        if measured == 3:
            signal.raise_signal(signal.SIGINT)
        return measure(self, formats)

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


def test_other_texts_and_models_are_not_mixed(
    bundle: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (bundle, "--model", tiny_model, "--max-kl", "0.1")
    assert calibrate(*words, *SMALL) == 0
    assert calibrate(*words, "--num-prompts", "2", "--max-new-tokens", "12") == 0
    err = capsys.readouterr().err
    assert err.count("measurements, up to about") == 2
    lines = (bundle / "calibration" / "quantization_sites.jsonl").read_text().splitlines()
    assert len({json.loads(line)["basis"] for line in lines}) == 2 and len(lines) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-kl", "0"), "max_kl is 0.0: it must be above 0"),
        (("--max-kl", "0.1", "--max-size", "2"), "exclude each other"),
        (("--max-new-tokens", "1"), "max_new_tokens is 1"),
        ((), "name the unquantized model with --model"),
        (("--model", "none"), "unknown model 'none'"),
        (("--target", "cloud"), "unknown target 'cloud'"),
        (("--formats", "int4,int3"), "no format 'int3': choose from int4, int8, fp32"),
        (("--formats", "fp32"), "name one that rounds"),
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


def test_another_model_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", llama_config(num_hidden_layers=1))
    assert calibrate(bundle, "--model", other, *SMALL) == cli.EXIT_ERROR
    assert "has 2 layers, other has 1" in capsys.readouterr().err


def test_the_help_text_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["calibrate", "quantization", "-h"])
    assert stopped.value.code == 0
    assert "--max-kl" in capsys.readouterr().out
