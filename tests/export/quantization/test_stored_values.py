"""Rounded values in a file: stored as they are by an export, refused where they do not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from support.graphs.planned_graphs import dequantize_whole, plan_of, quantized_weights
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import BaseModel, open_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.options import ExportOptions
from medusa_trt.export.pipeline import export_bundle
from medusa_trt.export.quantization.grid import RoundedMatrix, matrix_from_values
from medusa_trt.export.quantization.library import QuantizedWeight
from medusa_trt.export.quantization.plan import (
    PlannedSite,
    QuantizationPlan,
    ValuesFile,
    plan_from_file,
)
from medusa_trt.export.quantization.rounding import find_rounding
from medusa_trt.export.quantization.sites import sites_from_model
from medusa_trt.export.quantization.stored_values import (
    VALUES_FILE,
    StoredValues,
    describe_file,
    digest_weight,
    open_values,
    read_values,
    save_values,
)
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.weight_formats import is_rounded
from medusa_trt.runtime.engines.operators import find_library

needs_library = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")


def other_matrices(
    base: BaseModel, plan: QuantizationPlan
) -> tuple[dict[str, RoundedMatrix], dict[str, str]]:
    """Values near a model's, but not the nearest ones, for each matrix of a plan, and formats."""
    generator = torch.Generator().manual_seed(0)
    rounding = find_rounding(TARGETS[plan.target])
    formats = {name: site.format for site in plan.sites for name in site.weights}
    matrices = {}
    for name, format_ in formats.items():
        weight = torch.from_numpy(base.weights[name].stored()).float()
        changed = weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
        assert is_rounded(format_)
        grid = rounding.find_grid(weight.shape[1], format_)
        assert grid is not None
        values = np.ascontiguousarray(rounding.round_weight(changed.numpy().T, format_).T)
        matrices[name] = matrix_from_values(values, grid)
    return matrices, formats


def write_plan(
    base: BaseModel, folder: Path, *formats: str, target: str = "ort-cpu"
) -> tuple[Path, QuantizationPlan, dict[str, RoundedMatrix]]:
    """A plan with random values in the file beside it."""
    sites = sites_from_model(random_model(llama_config()))
    plan = plan_of(sites, formats, target)  # type: ignore[arg-type]
    matrices, by_weight = other_matrices(base, plan)
    digests = {name: digest_weight(base.weights[name].stored()) for name in matrices}
    save_values(folder / VALUES_FILE, matrices, by_weight, digests, "basis")
    plan = msgspec.structs.replace(plan, values=describe_file(folder / VALUES_FILE))
    path = folder / "plan.json"
    path.write_bytes(plan.to_json())
    return path, plan, matrices


def assert_equal(one: Mapping[str, RoundedMatrix], other: Mapping[str, RoundedMatrix]) -> None:
    assert one.keys() == other.keys()
    for name, matrix in one.items():
        assert (matrix.codes == other[name].codes).all()
        assert (matrix.scales == other[name].scales).all()
        assert matrix.block_size == other[name].block_size


def test_values_come_back(base: BaseModel, tmp_path: Path) -> None:
    path, plan, matrices = write_plan(base, tmp_path, "int4", "int8")
    values = open_values(path, plan, TARGETS["ort-cpu"], base.weights)
    assert values is not None
    assert_equal({name: values.read(name) for name in matrices}, matrices)
    same = read_values(tmp_path / VALUES_FILE, "basis")
    assert same is not None
    assert_equal(same, matrices)
    assert read_values(tmp_path / VALUES_FILE, "another") is None
    assert read_values(tmp_path / "none.safetensors", "basis") is None
    without = msgspec.structs.replace(plan, values=msgspec.UNSET)
    assert open_values(path, without, TARGETS["ort-cpu"], base.weights) is None


def test_int4_takes_half_a_byte(base: BaseModel, tmp_path: Path) -> None:
    _, _, matrices = write_plan(base, tmp_path, "int4")
    size = sum(m.codes.size // 2 + 2 * m.scales.size for m in matrices.values())
    assert size < (tmp_path / VALUES_FILE).stat().st_size < size + 8000


def export(tiny_model: Path, plan: Path, output: Path, target: str = "ort-cpu") -> list[str]:
    """Exports without heads, and returns what was told."""
    told: list[str] = []
    options = ExportOptions(
        model=str(tiny_model),
        heads="none",
        output=output,
        target=target,
        quantization_plan=plan,
    )
    export_bundle(options, told.append)
    return told


@needs_library
def test_a_bundle_has_the_integers_and_scales_of_the_file(
    base: BaseModel, tiny_model: Path, tmp_path: Path
) -> None:
    path, plan, matrices = write_plan(base, tmp_path, "int4", "int8")
    told = export(tiny_model, path, tmp_path / "bundle")
    kinds = "int4 with compensated rounding, int8 with compensated rounding"
    assert f"  tiny-llama has 15 matrices in {kinds}: 15 carried over exactly" in told
    assert plan_from_file(tmp_path / "bundle" / "quantization.json") == plan
    rows: dict[int, dict[bytes, tuple[NDArray[Any], NDArray[Any]]]] = {4: {}, 8: {}}
    for weight in quantized_weights(ir.load(tmp_path / "bundle" / "verify.onnx").graph):
        ones = QuantizedWeight(weight.data, np.ones_like(weight.scales), weight.bits)
        scales = weight.scales.transpose(0, 2, 1).reshape(-1, weight.scales.shape[1])
        for codes, output_scales in zip(dequantize_whole(ones).T, scales, strict=True):
            rows[weight.bits][codes[:64].tobytes()] = codes, output_scales
    for name, matrix in matrices.items():
        bits = {32: 4, 64: 8}[matrix.block_size]
        for codes, scales in zip(matrix.codes, matrix.scales, strict=True):
            stored, stored_scales = rows[bits][codes[:64].astype(np.float32).tobytes()]
            assert (stored[: len(codes)] == codes).all() and not stored[len(codes) :].any(), name
            assert (stored_scales[: len(scales)] == scales).all()


def test_a_device_reads_the_integers_of_the_file(
    base: BaseModel, tiny_model: Path, tmp_path: Path
) -> None:
    path, _, matrices = write_plan(base, tmp_path, "int4", "int8", target="tensorrt")
    told = export(tiny_model, path, tmp_path / "bundle", "tensorrt")
    assert any("15 carried over exactly" in text for text in told)
    columns = set()
    for node in ir.load(tmp_path / "bundle" / "verify.onnx").graph:
        if node.op_type == "DequantizeLinear":
            codes = node.inputs[0].const_value.numpy().astype(np.int8)  # type: ignore[union-attr]
            columns |= {column.tobytes() for column in codes.T}
    for name, matrix in matrices.items():
        assert {row.tobytes() for row in matrix.codes} <= columns, name


def refusal(path: Path, plan: QuantizationPlan, base: BaseModel, target: str = "ort-cpu") -> str:
    with pytest.raises(ExportError) as refused:
        open_values(path, plan, TARGETS[target], base.weights)
    message = str(refused.value)
    assert "\n" not in message and "calibrate quantization --compensate" in message
    return message


def test_a_missing_or_damaged_file_is_refused(
    base: BaseModel, tiny_model: Path, tmp_path: Path
) -> None:
    path, plan, _ = write_plan(base, tmp_path, "int4")
    file = tmp_path / VALUES_FILE
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    assert "is truncated or is not the file" in refusal(path, plan, base)
    with pytest.raises(ExportError, match="is truncated"):
        export(tiny_model, path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert read_values(file, "basis") is None
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is not the file" in refusal(path, plan, base)
    file.unlink()
    assert "cannot read" in refusal(path, plan, base)
    file.write_text("nothing")
    plan = msgspec.structs.replace(plan, values=describe_file(file))
    assert "has no rounded values" in refusal(path, plan, base)


def test_a_file_for_something_else_is_refused(base: BaseModel, tmp_path: Path) -> None:
    path, plan, matrices = write_plan(base, tmp_path, "int4")
    message = refusal(path, plan, base, "tensorrt")
    assert "was made for target ort-cpu" in message and "--target tensorrt" in message
    other = open_base_model(
        source_from_name(str(save_tiny_model(tmp_path / "other", llama_config(), seed=7)))
    )
    assert "was made from another model" in refusal(path, plan, other)
    sites = tuple(msgspec.structs.replace(site, format="int8") for site in plan.sites)
    changed = msgspec.structs.replace(plan, sites=sites)
    assert "in int4, the plan beside it in int8" in refusal(path, changed, base)
    digests = dict.fromkeys(["unknown.weight"], "")
    one = {"unknown.weight": next(iter(matrices.values()))}
    save_values(tmp_path / VALUES_FILE, one, {"unknown.weight": "int4"}, digests, "")
    unknown = msgspec.structs.replace(
        plan,
        sites=(*plan.sites, PlannedSite("unknown", "int4", ("unknown.weight",))),
        values=describe_file(tmp_path / VALUES_FILE),
    )
    assert "has unknown.weight, which the model lacks" in refusal(path, unknown, base)


def test_a_file_is_looked_for_beside_the_plan_only(base: BaseModel, tmp_path: Path) -> None:
    path, plan, _ = write_plan(base, tmp_path, "int4")
    assert isinstance(plan.values, ValuesFile)
    elsewhere = ValuesFile(f"../{tmp_path.name}/{VALUES_FILE}", plan.values.sha256)
    moved = msgspec.structs.replace(plan, values=elsewhere)
    values = open_values(path, moved, TARGETS["ort-cpu"], base.weights)
    assert values is not None and values.path == tmp_path / VALUES_FILE


def test_tied_weights_are_replaced_together(base: BaseModel, tmp_path: Path) -> None:
    path, plan, _ = write_plan(base, tmp_path, "int4")
    values = open_values(path, plan, TARGETS["ort-cpu"], base.weights)
    assert values is not None
    weights = dict(base.weights)
    name = "lm_head.weight"
    weights["tied"] = weights[name].rename("tied")
    replaced = values.replace_weights(weights)
    assert replaced["tied"].key == replaced[name].key != weights[name].key
    assert (replaced["tied"].stored() == values.read(name).compute_values()).all()
    unplanned = "model.norm.weight"
    assert replaced[unplanned] is weights[unplanned]


def test_a_file_that_goes_away_is_named(base: BaseModel, tmp_path: Path) -> None:
    path, plan, _ = write_plan(base, tmp_path, "int4")
    values = open_values(path, plan, TARGETS["ort-cpu"], base.weights)
    assert isinstance(values, StoredValues)
    values.path.unlink()
    with pytest.raises(ExportError, match=r"cannot read lm_head.weight in .*safetensors"):
        values.read("lm_head.weight")
