"""The comparison of a whole bundle with its model."""

from pathlib import Path

from medusa_trt.export.comparison.check import check_bundle
from medusa_trt.export.comparison.passages import NUM_TOKENS, PASSAGES
from medusa_trt.export.pipeline import ExportOptions, export_bundle


def test_a_bundle_in_bfloat16_is_compared_in_float32(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path
) -> None:
    bundle = export_bundle(
        ExportOptions(
            model=str(tiny_model),
            heads=tiny_heads,
            tree="chain-3",
            output=tmp_path / "bundle",
            max_length=320,
            target="tensorrt",
            precision="bf16",
        ),
        lambda _: None,
    )
    verified = bundle.manifest.verified
    assert verified.keys() == {"text", "tree", "batch"}
    assert verified["text"].num_positions == NUM_TOKENS * len(PASSAGES) == 400
    assert not [path for path in bundle.path.iterdir() if path.is_dir()]
    assert len(list(check_bundle(bundle.path, str(tiny_model)))) == 3
