"""Loading TensorRT engines: what is checked, and the room that streamed weights leave."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.built_engines import BuiltEngines

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.engine_record import record_from_folder


def test_loading_says_what_differs(trt_bundle: Bundle, tmp_path: Path) -> None:
    engines = BuiltEngines(trt_bundle, tmp_path)
    engines.change(version="10.16.1", compute_capabilities=["8.9"])
    with pytest.raises(EngineError, match=r"version 10.16.1.*11.0.0; built for.* 8.9.* 8.6"):
        engines.open_engine()
    engines.change(version="11.0.0", compute_capabilities=["8.6"])
    weights = record_from_folder(engines.folder).weights_sha256
    engines.change(weights_sha256="0" * 64)
    with pytest.raises(EngineError, match="built from other weights than the bundle's: build"):
        engines.open_engine()
    engines.change(weights_sha256=weights)
    files = record_from_folder(engines.folder).engines
    engines.change(engines={name: file for name, file in files.items() if name != "reduce"})
    with pytest.raises(EngineError, match="has no reduce engine: build the engines again"):
        engines.open_engine()
    engines.change(engines=files)
    (engines.folder / "heads.engine").write_bytes(b"short")
    with pytest.raises(EngineError, match=r"heads.engine is missing or truncated"):
        engines.open_engine()
    folder = shutil.copytree(trt_bundle.path, tmp_path / "b", ignore=lambda *_: ["engines"])
    engines.bundle = Bundle.open(folder)
    with pytest.raises(EngineError, match="has no engines: make them with medusa-trt build"):
        engines.open_engine(folder=None)


@pytest.mark.parametrize(("free_bytes", "left"), [(10**9, True), (1000, False)])
def test_streamed_weights_leave_room_for_the_cache(
    trt_bundle: Bundle, tmp_path: Path, free_bytes: int, left: bool
) -> None:
    engines = BuiltEngines(trt_bundle, tmp_path, weight_streaming=True, max_batch_size=2)
    engines.module.free_bytes = free_bytes
    engine = engines.open_engine(batch_size=2)
    model = trt_bundle.manifest.model
    slab = (model.num_layers, 2, 2, model.num_kv_heads, engine.capacity, model.head_dim)
    cache_bytes = 2 * int(np.prod(slab))
    budgets = {engine.graph: engine.weight_streaming_budget_v2 for engine in engines.module.engines}
    expected = free_bytes - cache_bytes if left else 0
    assert budgets == {"verify": expected, "heads": expected, "reduce": None}
    engine.close()
