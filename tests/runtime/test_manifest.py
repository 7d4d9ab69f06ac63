"""The manifest: what is written is read again, and what is damaged is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_trt.errors import BundleError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import (
    FORMAT_VERSION,
    Manifest,
    Thresholds,
    TypicalSpec,
    manifest_from_json,
)
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions


def refused(bundle: Bundle, edit: Callable[[Any], object], message: str) -> None:
    document = json.loads(bundle.manifest.to_json())
    edit(document)
    with pytest.raises(BundleError, match=message) as caught:
        manifest_from_json(json.dumps(document).encode(), "manifest.json")
    assert "\n" not in str(caught.value)


def test_the_manifest_survives_a_round_trip(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest_from_json(manifest.to_json(), "again") == manifest
    assert manifest_from_json(msgspec.json.encode(manifest), "again") == manifest
    on_disk = (tiny_bundle.path / names.MANIFEST_FILE).read_bytes()
    assert manifest_from_json(on_disk, "disk") == manifest
    assert manifest.format_version == FORMAT_VERSION
    # Two comparisons with the model for one sequence, one for a batch.
    assert manifest.verified.keys() == {"text", "tree", "batch"}


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_another_format_version_is_refused_before_its_fields(
    version: int, tiny_bundle: Bundle
) -> None:
    refused(
        tiny_bundle,
        lambda manifest: manifest.update(format_version=version, new_field=1),
        rf"manifest\.json has format version {version}, this release reads 1: export",
    )


EDITS: dict[str, Callable[[Any], object]] = {
    "unknown field `extra`": lambda manifest: manifest.update(extra=1),
    r"unknown field `extra` - at `\$\.model`": lambda m: m["model"].update(extra=1),
    r"unknown field `extra` - at `\$\.files\[...\]`": lambda m: m["files"][names.TREE_FILE].update(
        extra=1
    ),
    "required field `heads`": lambda manifest: manifest.pop("heads"),
    r"required field `sha256` - at `\$\.files\[...\]`": lambda m: m["files"][names.TREE_FILE].pop(
        "sha256"
    ),
    r"got `str` - at `\$\.heads\.top_k`": lambda m: m["heads"].update(top_k="10"),
    r"got `float` - at `\$\.model\.vocab_size`": lambda m: m["model"].update(vocab_size=1.5),
    r"got `null` - at `\$\.tree_name`": lambda m: m.update(tree_name=None),
    r"`int` >= 1 - at `\$\.model\.num_layers`": lambda m: m["model"].update(num_layers=0),
    r"`int` >= 1 - at `\$\.target\.prefill_chunk`": lambda m: m["target"].update(prefill_chunk=-5),
    r"`float` <= 1.0 - at `\$\.typical\[0\]\.thresholds\.posterior_alpha`": lambda m: m.update(
        typical=[{"temperature": 1, "thresholds": {"posterior_threshold": 0, "posterior_alpha": 2}}]
    ),
    r"got `object` - at `\$\.graphs\[...\]\.inputs`": lambda m: m["graphs"]["verify"].update(
        inputs={}
    ),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_manifest_with_wrong_fields_is_refused(message: str, tiny_bundle: Bundle) -> None:
    refused(
        tiny_bundle,
        EDITS[message],
        rf"manifest\.json is damaged \(.*{message}\): export the model again$",
    )


def test_the_nearest_temperatures_thresholds_fill_what_the_user_left_out(
    tiny_bundle: Bundle,
) -> None:
    typical = [
        TypicalSpec(temperature=0.5, thresholds=None),
        TypicalSpec(temperature=1.0, thresholds=Thresholds(0.06, 0.2)),
    ]
    manifest = msgspec.structs.replace(tiny_bundle.manifest, typical=typical)
    assert manifest_from_json(manifest.to_json(), "again") == manifest

    def fill(temperature: float, **given: float) -> tuple[float | None, float | None]:
        sampling = SamplingOptions(temperature=temperature)
        options = GenerationOptions(sampling=sampling, acceptance="typical", **given)  # type: ignore[arg-type]
        filled = manifest.fill_thresholds(options)
        return filled.posterior_threshold, filled.posterior_alpha

    assert fill(0.9) == fill(2.0) == (0.06, 0.2)
    assert fill(0.7) == (0.09, 0.3)
    assert fill(0.9, posterior_threshold=0.0) == (0.0, 0.2)
    assert fill(0.9, posterior_alpha=0.0) == (0.06, 0.0)
    assert fill(0.7, posterior_alpha=0.4) == (0.09, 0.4)
    described = manifest.describe_typical()
    assert described == "acceptance sample at temperature 0.5; ε 0.06, δ 0.2 at temperature 1"
    filled = tiny_bundle.manifest.fill_thresholds(GenerationOptions())
    assert (filled.posterior_threshold, filled.posterior_alpha) == (0.09, 0.3), "the paper's"
    cool = GenerationOptions(sampling=SamplingOptions(temperature=0.6), acceptance="typical")
    described = str(manifest.describe_thresholds(cool))
    assert described == (
        "typical acceptance, ε 0.09, δ 0.3: calibrate threshold recommends acceptance sample at "
        "temperature 0.5"
    )
    warm = GenerationOptions(sampling=SamplingOptions(temperature=0.9), acceptance="typical")
    described = str(manifest.describe_thresholds(warm))
    assert described == "typical acceptance, ε 0.06, δ 0.2; ε and δ calibrated at temperature 1"
    described = str(manifest.describe_thresholds(replace(warm, posterior_threshold=0.5)))
    assert described == "typical acceptance, ε 0.5, δ 0.2; δ calibrated at temperature 1"
    assert manifest.describe_thresholds(GenerationOptions()) is None


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0), byte=st.integers(0, 255), size=st.integers(0))
def test_any_damaged_manifest_is_read_or_refused(
    tiny_bundle: Bundle, place: int, byte: int, size: int
) -> None:
    content = bytearray(tiny_bundle.manifest.to_json())
    content[place % len(content)] = byte
    try:
        manifest = manifest_from_json(bytes(content[: size or None]), "it")
    except BundleError as error:
        assert str(error).startswith("it ") and "\n" not in str(error)
    else:
        assert isinstance(manifest, Manifest)
