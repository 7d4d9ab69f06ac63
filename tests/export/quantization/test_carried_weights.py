"""Quantized checkpoints whose codes and scales are those of the bundle, or that are rounded."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.packed_checkpoints import METHODS, Grid, grid_of, pack_checkpoint
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.quantization.carried_weights import CarriedWeights
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import find_library

needs_library = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

Array = NDArray[Any]
CONFIG = {"intermediate_size": 128}


def verify_graph(bundle: Bundle) -> ir.Graph:
    return ir.load(bundle.path / bundle.manifest.graphs["verify"].file).graph


def array_of(value: ir.Value | None) -> Array:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def rows_of(codes: Array, scales: Array) -> set[bytes]:
    """Each output's codes (N, K) and scales (N, K / block)."""
    return {
        code.astype(np.int8).tobytes() + scale.astype(np.float16).tobytes()
        for code, scale in zip(codes, scales, strict=True)
    }


def library_rows(bundle: Bundle) -> set[bytes]:
    """Of all products of the operator library, read by native/kernels/kernels.h's description."""
    rows = set()
    for node in verify_graph(bundle):
        if node.op_type == "LinearChain":
            layers = [(str(i), 2 + 4 * i) for i in range(node.attributes.get_int("num_layers", 0))]
        else:
            layers = [("", 1)] if node.op_type == "Linear" else []
        for suffix, first in layers:
            data, scales = array_of(node.inputs[first]), array_of(node.inputs[first + 1])
            if node.attributes.get_int(f"bits{suffix}", 0) == 8:
                codes = data.reshape(len(data), -1, 16, 4).transpose(0, 2, 1, 3).astype(int) - 128
            else:
                halves = data.reshape(len(data), -1, 1, 8, 16, 4)
                both = np.concatenate([halves & 15, halves >> 4], 2).astype(int) - 8
                codes = both.transpose(0, 4, 1, 2, 3, 5)
            num_rows = len(data) * 16
            rows |= rows_of(
                codes.reshape(num_rows, -1), scales.transpose(0, 2, 1).reshape(num_rows, -1)
            )
    return rows


def device_rows(bundle: Bundle) -> set[bytes]:
    """Of all products behind `DequantizeLinear`."""
    rows = set()
    for node in verify_graph(bundle):
        if node.op_type == "DequantizeLinear":
            rows |= rows_of(array_of(node.inputs[0]).astype(int).T, array_of(node.inputs[1]).T)
    return rows


def exported(
    model: Path, heads: Path, output: Path, precision: str, target: str = "ort-cpu"
) -> tuple[Bundle, str]:
    """The bundle, and the line that says what became of the matrices."""
    said: list[str] = []
    options = ExportOptions(
        model=str(model),
        heads=heads,
        tree="chain-2",
        output=output,
        precision=precision,
        target=target,
        max_length=128,
    )
    bundle = export_bundle(options, said.append)
    return bundle, next(line for line in said if " matrices in " in line)


def packed_model(folder: Path, name: str, **grid_options: Any) -> tuple[Path, list[Grid]]:
    """A tiny model in one of the methods, with its grids."""
    save_tiny_model(folder, llama_config(**CONFIG))
    rng = np.random.default_rng(0)
    method = METHODS[name]
    grids = {
        key: grid_of(parameter.detach().numpy(), method.bits, rng, **grid_options)
        for key, parameter in random_model(llama_config(**CONFIG)).named_parameters()
        if "_proj." in key
    }
    pack_checkpoint(folder, method, grids)
    return folder, list(grids.values())


def expected_rows(grids: list[Grid], block: int) -> set[bytes]:
    rows = set()
    for grid in grids:
        scales = grid.scales[grid.group][::block]
        rows |= rows_of(grid.signed.T, scales.T)
    return rows


@needs_library
@pytest.mark.parametrize(("name", "size"), [("gptq-4", 64), ("awq", 32), ("compressed-4", 32)])
def test_symmetric_checkpoints_keep_their_codes(
    name: str, size: int, tiny_heads: Path, tmp_path: Path
) -> None:
    model, grids = packed_model(tmp_path / "model", name, size=size, spread=0)
    bundle, said = exported(model, tiny_heads, tmp_path / "bundle", "int4")
    assert said.startswith("  model has 14 matrices in ")
    assert said.endswith(": 14 carried over exactly")
    expected = expected_rows(grids, 32)
    assert len(expected) > 500 and expected <= library_rows(bundle)


def test_devices_keep_the_codes_too(tiny_heads: Path, tmp_path: Path) -> None:
    model, grids = packed_model(tmp_path / "model", "gptq-4", size=32, spread=0)
    bundle, said = exported(model, tiny_heads, tmp_path / "bundle", "int4", "tensorrt")
    assert said.endswith(": 14 carried over exactly")
    expected = expected_rows(grids, 32)
    assert len(expected) > 500 and expected <= device_rows(bundle)


@needs_library
def test_eight_bits_hold_zero_points(tiny_heads: Path, tmp_path: Path) -> None:
    """In groups as large as the library's blocks."""
    model, grids = packed_model(tmp_path / "model", "awq", size=64, zero=4)
    bundle, said = exported(model, tiny_heads, tmp_path / "bundle", "int8")
    assert said.endswith(": 14 carried over exactly")
    assert max(grid.signed.max() for grid in grids) > 8
    assert expected_rows(grids, 64) <= library_rows(bundle)


@needs_library
@pytest.mark.parametrize(
    ("precision", "options", "ending"),
    [
        ("int4", {"zero": 4}, "14 dequantized and rounded again"),
        ("int4", {"spread": 0, "ordered": True}, "14 dequantized and rounded again"),
        ("int8", {"spread": 0, "size": 32}, "14 dequantized and rounded again"),
        ("fp32", {"spread": 0}, "14 dequantized"),
    ],
)
def test_what_the_target_cannot_hold_is_a_warning(
    precision: str, options: dict[str, Any], ending: str, tiny_heads: Path, tmp_path: Path
) -> None:
    model, grids = packed_model(tmp_path / "model", "gptq-4", **options)
    bundle, said = exported(model, tiny_heads, tmp_path / "bundle", precision)
    assert said == f"warning: model has 14 matrices in gptq of 4 bits: {ending}"
    assert not expected_rows(grids, 32) <= library_rows(bundle)


@needs_library
@pytest.mark.parametrize(
    ("kind", "start", "ending"),
    [
        ("Q4_0", "  ", "14 carried over exactly"),
        ("Q4_1", "warning: ", "14 dequantized and rounded again"),
    ],
)
def test_gguf_files(kind: str, start: str, ending: str, tiny_heads: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = write_gguf(path, random_model(llama_config(**CONFIG)), kind)
    bundle, said = exported(path, tiny_heads, tmp_path / "bundle", "int4")
    assert said == f"{start}tiny has 14 matrices in {kind}: {ending}"
    expected = {row for codes, scales in written for row in rows_of(codes, scales)}
    assert (expected <= library_rows(bundle)) == (kind == "Q4_0")


def test_the_line_counts_each_matrix_of_the_checkpoint_once() -> None:
    array = np.ones((2, 2), np.float32)

    def weight(name: str, quantization: str | None = "gptq of 4 bits") -> LazyTensor:
        return LazyTensor(lambda: array, (2, 2), name, name=name, quantization=quantization)

    names = ("a.weight", "b.weight", "c.weight")
    weights = {name: weight(name) for name in names}
    weights |= {"tied.weight": weights["a.weight"], "norm.weight": weight("norm", None)}
    carried = CarriedWeights(weights, "model.")
    assert carried.report_stored is not None
    carried.report_stored(weight("model.a.weight"), True)
    carried.report_stored(weight("model.norm.weight", None), False)
    packed = LazyTensor(lambda: array, (2, 2), "bc", sources=("model.b.weight", "x"))
    carried.report_stored(packed, False)
    assert carried.describe("it") == (
        "warning: it has 3 matrices in gptq of 4 bits: "
        "1 carried over exactly, 1 dequantized and rounded again, 1 dequantized"
    )
    plain = CarriedWeights({"norm.weight": weights["norm.weight"]}, "model.")
    assert plain.report_stored is None and plain.describe("it") is None
