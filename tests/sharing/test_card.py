"""Model cards of bundles and heads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.measurements.bench_rows import both, report_of

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.sharing.card import CardOptions, write_card


def read_front_matter(path: Path) -> dict[str, object]:
    """What the hub reads at the beginning of a card."""
    _, front, _ = path.read_text("utf-8").split("---\n", 2)
    values: dict[str, object] = yaml.safe_load(front)
    return values


def write_results(bundle: Bundle, path: Path, **changes: Any) -> Path:
    """Results of a benchmark, as if they were measured with this bundle."""
    model, target = bundle.manifest.model, bundle.manifest.target
    values: dict[str, Any] = {
        "model": model.name,
        "target": target.name,
        "precision": target.precision,
    }
    report = report_of(both("a", 1.0, 0.5))
    path.write_bytes(replace(report, setup=replace(report.setup, **(values | changes))).to_json([]))
    return path


def test_the_card_of_a_bundle_has_its_figures(tiny_bundle: Bundle, tmp_path: Path) -> None:
    results = write_results(tiny_bundle, tmp_path / "bench.json")
    card = write_card(
        CardOptions(
            source=tiny_bundle.path,
            output=tmp_path / "README.md",
            base_model="owner/model",
            license="apache-2.0",
            repository="owner/tiny",
            results=(results,),
        )
    )
    assert read_front_matter(card) == {
        "library_name": "medusa-trt",
        "pipeline_tag": "text-generation",
        "tags": ["medusa", "speculative-decoding", "onnx"],
        "base_model": "owner/model",
        "license": "apache-2.0",
    }
    text = card.read_text("utf-8")
    agreement = tiny_bundle.manifest.verified["text"]
    assert f"| text | {agreement.num_positions:,} | {agreement.argmax_agreement:.1%} |" in text
    assert "medusa-trt serve owner/tiny" in text
    plain, medusa = report_of(both("a", 1.0, 0.5)).summary.modes
    assert plain.tokens_per_s is not None and medusa.tokens_per_s is not None
    assert f"| {plain.name} | {plain.tokens_per_s.median:,.0f} | 1.00 |" in text
    assert f"| {medusa.name} | {medusa.tokens_per_s.median:,.0f} | 2.00 | 2.00 |" in text


def test_the_card_of_heads_names_their_model(tiny_heads: Path, tmp_path: Path) -> None:
    card = write_card(CardOptions(source=tiny_heads, output=tmp_path / "README.md"))
    assert "library_name" in read_front_matter(card)
    assert "--heads OWNER/NAME" in card.read_text("utf-8")


def test_a_card_that_exists_is_kept(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "README.md"
    output.write_text("mine")
    with pytest.raises(MedusaError, match="exists: give --overwrite"):
        write_card(CardOptions(source=tiny_bundle.path, output=output))
    write_card(CardOptions(source=tiny_bundle.path, output=output, overwrite=True))
    assert output.read_text("utf-8").startswith("---")


def test_results_of_another_bundle_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = write_results(tiny_bundle, tmp_path / "other.json", precision="int3")
    (tmp_path / "else.json").write_text("{}")
    for name, told in (("other.json", "give results of this bundle"), ("else.json", "no result")):
        results = (tmp_path / name,)
        with pytest.raises(MedusaError, match=told):
            write_card(
                CardOptions(source=tiny_bundle.path, output=tmp_path / "c.md", results=results)
            )
    assert other.exists() and not (tmp_path / "c.md").exists()
