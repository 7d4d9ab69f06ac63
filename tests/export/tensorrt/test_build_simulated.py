"""The build of TensorRT's engines, with stand-ins that take every graph."""

from pathlib import Path

import pytest
from support.built_engines import PROMPT, BuiltEngines

from medusa_trt.errors import BuildError, EngineError
from medusa_trt.export.tensorrt import build
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.engine_record import record_from_folder
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree


def test_the_builder_gets_the_options(trt_bundle: Bundle, tmp_path: Path) -> None:
    engines = BuiltEngines(
        trt_bundle,
        tmp_path,
        workspace_mib=64,
        optimization_level=2,
        weight_streaming=True,
        version_compatible=True,
    )
    config = engines.module.configs[0]
    assert config.limit == 64 << 20 and config.builder_optimization_level == 2
    assert config.flags == ["version", "stream"]
    assert engines.module.configs[2].flags == ["version"], "the reduce engine has no weights"
    assert (tmp_path / "timing.cache").read_bytes() == b"ttt"  # all engines added to it
    small = BuiltEngines(trt_bundle, tmp_path, overwrite=True, max_tree_nodes=8, prefill_chunk=16)
    engine = small.open_engine()
    engine.verify([[1] * 16], chain_tree(15), [0])
    assert small.module.executed == ["profile 1"]
    with pytest.raises(EngineError, match="a step of 20 nodes: the engines take 16 at most"):
        engine.verify([[1] * 20], chain_tree(19), [0])
    engine.close()
    # Nor does a session ask for more: a prompt comes in pieces of 16.
    options = GenerationOptions(max_new_tokens=6, ignore_eos=True)
    with MedusaSession(trt_bundle, engine=small.open_engine()) as session:
        found = session.generate(PROMPT, options).token_ids
    with MedusaSession(trt_bundle, engine=engines.open_engine(), max_length=256) as session:
        assert session.generate(PROMPT, options).token_ids == found
    assert (tmp_path / "timing.cache").read_bytes() == b"tttttt"
    assert record_from_folder(engines.folder).any_version is False


@pytest.mark.parametrize("content", [b"other version", b"damaged"])
def test_a_timing_cache_that_does_not_fit_is_written_anew(
    trt_bundle: Bundle, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "timing.cache").write_bytes(content)
    engines = BuiltEngines(trt_bundle, tmp_path)
    assert (tmp_path / "timing.cache").read_bytes() == b"ttt"
    assert (
        sum("timing cache is damaged or of another GPU" in line for line in engines.messages) == 1
    )


def test_mistakes_in_paths_end_a_build_before_it_begins(trt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"--timing-cache .*: give a file in a folder that is"):
        BuiltEngines(trt_bundle, tmp_path, timing_cache=tmp_path / "no" / "file")  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=r"cannot write .*/no/engines: .*/no is not a folder"):
        BuiltEngines(trt_bundle, tmp_path / "no")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "thesis.txt").write_text("all of it")
    with pytest.raises(BuildError, match="holds no engines, so it is not overwritten"):
        BuiltEngines(trt_bundle, tmp_path, overwrite=True)
    assert (tmp_path / "engines" / "thesis.txt").is_file()


@pytest.mark.parametrize("max_length", [97, 128, 255])
def test_slots_of_the_cache_are_aligned(
    trt_bundle: Bundle, tmp_path: Path, max_length: int
) -> None:
    engines = BuiltEngines(trt_bundle, tmp_path, max_length=max_length, max_tree_nodes=5)
    model = trt_bundle.manifest.model
    record = record_from_folder(engines.folder)
    slot_bytes = model.num_kv_heads * record.capacity * model.head_dim * 2
    assert slot_bytes % 256 == 0
    assert 0 <= record.capacity - max_length - 5 < 16


def test_an_interrupt_while_building_is_one(
    trt_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build._Throttle, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        BuiltEngines(trt_bundle, tmp_path)
    assert not list(tmp_path.iterdir())
